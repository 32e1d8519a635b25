-- A node is about to say everything again: what its older connections, or an earlier life of it, said is not so any more.
-- KEYS: its lease. ARGV: life, connection. Returns 0 if it is this that comes late.
local life, connection = tonumber(ARGV[1]), tonumber(ARGV[2])
local lease = lease_read(KEYS[1])
if lease and lease_is_late(lease, life, connection) then
  return 0
end
lease_write(KEYS[1], life, connection, lease and lease.ended or 0)
return 1
