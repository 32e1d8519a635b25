#!lua flags=allow-oom
-- Forget whom a node that is gone had in some channels.
-- KEYS: channels of the node, then per channel: the users that it had there, the channel's nodes; last, where it is in this
-- partition: the gone. ARGV: node, then the channels; last: the key of the gone again, or "" (it was looked at just before).
local gone = ARGV[#ARGV]
if gone ~= '' and not redis.call('ZSCORE', gone, ARGV[1]) then
  return 0
end
for i = 1, #ARGV - 2 do
  redis.call('UNLINK', KEYS[2 * i])
  redis.call('SREM', KEYS[2 * i + 1], ARGV[1])
  redis.call('SREM', KEYS[1], ARGV[i + 1])
end
return 1
