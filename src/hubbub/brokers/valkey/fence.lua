#!lua flags=allow-oom
-- (With a full engine, too: without its fence no node could come back to one that was restarted. One short key a partition.)
-- The fence of a partition: who the engine is (its run and its replication history), and a token for that life of it.
-- KEYS: fence. ARGV: identity as this node sees it, a new token.
-- Another identity than the one that is noted: the engine was restarted, or a replica took over; it may have lost the
-- newest writes. From here, positions are of a new generation.
local fence = redis.call('GET', KEYS[1])
if fence then
  local token, identity = string.match(fence, '^(%S+) (%S+)$')
  if identity == ARGV[1] then
    return fence
  end
end
fence = ARGV[2] .. ' ' .. ARGV[1]
redis.call('SET', KEYS[1], fence)
return fence
