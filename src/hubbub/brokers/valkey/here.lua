-- A node says whom it has in some channels, and whom no more; the nodes that are subscribed to them hear it.
-- KEYS: channels of the node, then per channel: the users that it has there (hash: user → JSON, "" → number), the
-- channel's nodes. ARGV: node, number of this batch, PUBLISH or SPUBLISH, 1: tell even what is not new; then per channel:
-- pub/sub channel, name, count, and so often a user and how it is there ("": it is not).
local node, number, send, all = ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1'
local key, arg = 2, 5
while arg <= #ARGV do
  local users, nodes = KEYS[key], KEYS[key + 1]
  local topic, name, count = ARGV[arg], ARGV[arg + 1], tonumber(ARGV[arg + 2])
  key, arg = key + 2, arg + 3
  local told = {}
  for i = arg, arg + 2 * count - 2, 2 do
    local user, value = ARGV[i], ARGV[i + 1]
    local old = redis.call('HGET', users, user)
    if value == '' then
      if old then
        redis.call('HDEL', users, user)
      end
      if old or all then
        told[#told + 1] = '[' .. cjson.encode(user) .. ',null]'
      end
    else
      if old ~= value then
        redis.call('HSET', users, user, value)
      end
      if old ~= value or all then
        told[#told + 1] = '[' .. cjson.encode(user) .. ',' .. value .. ']'
      end
    end
  end
  arg = arg + 2 * count
  if #told > 0 then
    redis.call('HSET', users, '', number)
    if redis.call('HLEN', users) == 1 then
      redis.call('DEL', users)
      redis.call('SREM', nodes, node)
      redis.call('SREM', KEYS[1], name)
    else
      redis.call('SADD', nodes, node)
      redis.call('SADD', KEYS[1], name)
    end
    redis.call(send, topic, '\0[' .. cjson.encode(node) .. ',' .. number .. ',[' .. table.concat(told, ',') .. ']]')
  end
end
return 1
