-- Forget whom a node that is gone had in some channels.
-- KEYS: channels of the node, its lease, then per channel: the users that it had there, the channel's nodes; last, where it is
-- in this partition: the gone. ARGV: node, the life that is over ("": not known), then the channels; last: the key of the gone
-- again, or "" (it was looked at just before).
local gone, lease = ARGV[#ARGV], lease_read(KEYS[2])
if lease and lease.life > (tonumber(ARGV[2]) or NEVER) then
  return 0 -- it is back, and has said so here
end
if gone ~= '' and not redis.call('ZSCORE', gone, ARGV[1]) then
  return 0
end
for i = 1, #ARGV - 3 do
  redis.call('UNLINK', KEYS[2 * i + 1])
  redis.call('SREM', KEYS[2 * i + 2], ARGV[1])
  redis.call('SREM', KEYS[1], ARGV[i + 2])
end
return 1
