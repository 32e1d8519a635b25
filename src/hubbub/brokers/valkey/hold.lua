-- Go on cleaning up after a node that is gone. KEYS: the gone, its lease. ARGV: node, claim (ms).
-- Returns which life of it is over ("": not known), or 0 if it is back.
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  return 0
end
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[2]), ARGV[1])
local lease = lease_read(KEYS[2])
return lease and lease.life > 0 and tostring(lease.life) or ''
