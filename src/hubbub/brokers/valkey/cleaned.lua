-- All that a node that is gone had is forgotten. Nothing, if it is back, or was and is gone again.
-- KEYS: the gone, its lease, the messages to it (stream), bus (hash: numbers). ARGV: node, the life that was cleaned up after
-- ("": not known).
local lease = lease_read(KEYS[2])
if redis.call('ZSCORE', KEYS[1], ARGV[1]) and not (lease and lease.life > (tonumber(ARGV[2]) or NEVER)) then
  redis.call('UNLINK', KEYS[3])
  redis.call('HDEL', KEYS[4], ARGV[1])
  redis.call('ZREM', KEYS[1], ARGV[1])
  return 1
end
return 0
