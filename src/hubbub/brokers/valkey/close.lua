-- A life of a node is over: from here on, nothing of it is noted in this partition. KEYS: its lease.
-- ARGV: the life, "" where it is not known any more: then the newest one that was heard of here.
local lease = lease_read(KEYS[1]) or {life = 0, connection = 0, ended = 0}
lease_write(KEYS[1], lease.life, lease.connection, math.max(lease.ended, tonumber(ARGV[1]) or lease.life))
return 1
