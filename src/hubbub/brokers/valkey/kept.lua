-- The facts of a kind that have not ended, as key, value, … KEYS: facts (hash: rank, a space, value), when each ends (zset).
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local result = {}
for _, key in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. now, '+inf')) do
  local fact = redis.call('HGET', KEYS[1], key)
  if fact then
    result[#result + 1] = key
    result[#result + 1] = string.sub(fact, (string.find(fact, ' ', 1, true) or 0) + 1)
  end
end
return result
