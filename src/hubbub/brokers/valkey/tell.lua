#!lua flags=allow-oom
-- (With a full engine, too: people are disconnected and revoked by it. So many messages are kept and no more, of each bus, and
-- for minutes. Clients cause short ones only: of their own devices and rooms. The long ones are the app's and the admins'.)
-- A message to all nodes, or to one. It is kept for a while, so that a node that was cut off can have it.
-- KEYS: bus (hash: epoch, numbers), the messages (stream). ARGV: whose number ("all" or a node), sender ("": no node),
-- message, PUBLISH or SPUBLISH, pub/sub channel, how many are kept, for how many seconds, an epoch for a new bus.
-- Returns its number.
local time = redis.call('TIME')
redis.call('HSETNX', KEYS[1], 'epoch', ARGV[8])
local number = redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
if number == 1 then
  redis.call('DEL', KEYS[2]) -- of a bus that is gone
end
local oldest = time[1] - tonumber(ARGV[7])
for _, old in ipairs(redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 4)) do
  if tonumber(old[2][6]) >= oldest then
    break
  end
  redis.call('XDEL', KEYS[2], old[1])
end
redis.call('XADD', KEYS[2], 'MAXLEN', '=', ARGV[6], number .. '-0', 's', ARGV[2], 'm', ARGV[3], 't', time[1])
redis.call('EXPIRE', KEYS[2], ARGV[7])
redis.call(ARGV[4], ARGV[5], number .. ' ' .. ARGV[2] .. '\n' .. ARGV[3])
return number
