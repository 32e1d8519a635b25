#!lua flags=allow-oom
-- (With a full engine, too: or a revocation would be in force on one node only. A fact is a few hundred bytes; there are as many
-- as those who may revoke make of them, and each ends.)
-- Keep a fact for a while. KEYS: facts of the kind (hash: rank, a space, value), when each ends (zset). ARGV: key, value,
-- milliseconds, rank.
-- Where there is one of another rank already, the higher one is kept, until both would have ended; of the same rank, this one.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 100)) do
  redis.call('HDEL', KEYS[1], old)
  redis.call('ZREM', KEYS[2], old)
end
local fact, ends = ARGV[4] .. ' ' .. ARGV[2], now + tonumber(ARGV[3])
local old = redis.call('HGET', KEYS[1], ARGV[1])
local old_ends = tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1]) or 0)
if old and old_ends > now then
  local known, rank = tonumber(string.match(old, '^%S+')) or -math.huge, tonumber(ARGV[4])
  if known ~= rank then
    ends = math.max(ends, old_ends)
  end
  if known > rank then
    fact = old
  end
end
redis.call('HSET', KEYS[1], ARGV[1], fact)
redis.call('ZADD', KEYS[2], ends, ARGV[1])
local last = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
redis.call('PEXPIREAT', KEYS[1], last)
redis.call('PEXPIREAT', KEYS[2], last)
return 1
