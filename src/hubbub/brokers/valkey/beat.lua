-- A node's beat: it lives for so long again, and hears who else does.
-- KEYS: nodes (zset: when each lease ends), what they say of themselves (hash), the gone (zset: from when one may clean up
-- after each), bus (hash: epoch, numbers), this node's lease. ARGV: node, what it says, lease, beat, claim (ms), an epoch for
-- a new bus, PUBLISH or SPUBLISH, the bus's pub/sub channel: where somebody came or went, all look at once; the life that the
-- node knows of, its connection.
-- Who is in `nodes` has not been taken for gone by anybody; who is taken out of it, by whichever node beats first after
-- its lease ended, is gone for all, and begins another life with its next beat. Each beat says which: an answer may be lost.
-- Returns: the life of this node, a node to clean up after or "", the bus: epoch, number for all, number for this node; then
-- node and what it says, for each other one.
local nodes, says, gone, bus = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local node, lease, beat, claim = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local known, connection = lease_read(KEYS[5]) or {life = 0, connection = 0, ended = 0}, tonumber(ARGV[10])
if connection < known.connection or known.ended == NEVER then
  return redis.error_reply('LATE the node has another connection, or has said goodbye')
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- nobody has beaten for a while: it was the engine that was away, not the nodes
local newest = redis.call('ZREVRANGE', nodes, 0, 0, 'WITHSCORES')
if newest[2] and newest[2] - lease + 2 * beat < now then
  for _, other in ipairs(redis.call('ZRANGE', nodes, 0, -1)) do
    redis.call('ZADD', nodes, now + lease, other)
  end
end

local stir = false
for _, other in ipairs(redis.call('ZRANGEBYSCORE', nodes, '-inf', '(' .. now)) do
  stir = stir or other ~= node
  redis.call('ZREM', nodes, other)
  redis.call('HDEL', says, other)
  redis.call('ZADD', gone, now, other)
end
local lost = redis.call('ZADD', nodes, now + lease, node)
-- what the node knows may be more than an engine does that has lost something
local life = math.max(known.life, tonumber(ARGV[9])) + lost
lease_write(KEYS[5], life, connection, known.ended)
if stir or lost == 1 then
  redis.call(ARGV[7], ARGV[8], '0 ' .. node .. '\n')
end
redis.call('HSET', says, node, ARGV[2])
redis.call('ZREM', gone, node)
local dirty = redis.call('ZRANGEBYSCORE', gone, '-inf', now, 'LIMIT', 0, 1)[1]
if dirty then
  redis.call('ZADD', gone, now + claim, dirty)
end
redis.call('HSETNX', bus, 'epoch', ARGV[6])
local numbers = redis.call('HMGET', bus, 'epoch', 'all', node)
local result = {life, dirty or '', numbers[1], tonumber(numbers[2] or 0), tonumber(numbers[3] or 0)}
for _, other in ipairs(redis.call('ZRANGE', nodes, 0, -1)) do
  if other ~= node then
    result[#result + 1] = other
    result[#result + 1] = redis.call('HGET', says, other) or ''
  end
end
return result
