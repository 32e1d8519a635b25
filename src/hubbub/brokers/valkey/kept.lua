-- The facts of a kind that have not ended, as key, value, … KEYS: facts (hash), when each ends (zset).
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local result = {}
for _, key in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. now, '+inf')) do
  local value = redis.call('HGET', KEYS[1], key)
  if value then
    result[#result + 1] = key
    result[#result + 1] = value
  end
end
return result
