-- A node says whom it has in some channels, and whom no more; the nodes that are subscribed to them hear it.
-- KEYS: its lease, its channels, then per channel: the users that it has there (hash: user → JSON, "" → number), the
-- channel's nodes. ARGV: node, life, connection, 1: also where nothing is known of its lease, number of this batch, PUBLISH or
-- SPUBLISH, 1: tell even what is not new; then per channel: pub/sub channel, name, count, and so often a user and how it is
-- there ("": it is not).
-- Returns 1; 0: nothing is known of its lease (it lives, or has been dead for so long); -1: this comes late.
local lease, life, connection = lease_read(KEYS[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if lease and lease_is_late(lease, life, connection) then
  return -1
elseif not lease and ARGV[4] ~= '1' then
  return 0
end
lease_write(KEYS[1], life, connection, lease and lease.ended or 0)
local node, channels, number, send, all = ARGV[1], KEYS[2], ARGV[5], ARGV[6], ARGV[7] == '1'
local key, arg = 3, 8
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
      redis.call('SREM', channels, name)
    else
      redis.call('SADD', nodes, node)
      redis.call('SADD', channels, name)
    end
    redis.call(send, topic, '\0[' .. cjson.encode(node) .. ',' .. number .. ',[' .. table.concat(told, ',') .. ']]')
  end
end
return 1
