-- A node stops, and cleans up after itself; if it does not get to the end of that, another one does.
-- KEYS: nodes, what they say, the gone, its lease. ARGV: node, claim (ms), PUBLISH or SPUBLISH, the bus's pub/sub channel.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[3], now + tonumber(ARGV[2]), ARGV[1])
local lease = lease_read(KEYS[4]) or {life = 0, connection = 0}
lease_write(KEYS[4], lease.life, lease.connection, NEVER) -- a beat that comes late does not bring it back
redis.call(ARGV[3], ARGV[4], '0 ' .. ARGV[1] .. '\n')
return 1
