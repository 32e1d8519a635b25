-- Where a channel is, and some of its history.
-- KEYS: fence, meta, history. ARGV: fence as the node knows it, token, base for a new meta, seconds for which the meta is
-- kept, after, before, limit, mode: s (since: what came after `after`, the newest `limit` of it), a (a page that begins
-- after `after`), b (a page that ends before `before`, 0: at the newest), p (nothing: only the position).
-- Returns: meta as text, length of the history, offset of the first entry that follows, entries.
local fence = redis.call('GET', KEYS[1])
if fence ~= ARGV[1] then
  return redis.error_reply('FENCED the engine is another one than this node knows')
end
local token = ARGV[2]
local meta = meta_read(KEYS[2], KEYS[3], token, ARGV[3])
local keep = tonumber(ARGV[4])
if meta.offset == 0 then
  keep = math.min(keep, 3600) -- nothing was ever published: or any name that is asked for would stay a day
end
if meta.renewed then
  if not meta.new then
    -- a write that takes no memory, after which the next is not refused for want of it: with a full engine, too, a restart
    -- is noted. A channel that is there gains 20 bytes by it, for eight restarts.
    redis.call('EXPIRE', KEYS[2], keep)
  end
  local set = redis.pcall('SET', KEYS[2], meta_text(meta, token), 'EX', keep)
  if set.err then
    if not string.find(set.err, 'OOM', 1, true) then
      return set
    end
    -- No memory for another name: who asks is told the same position for an hour, and nothing is kept. It is never taken for
    -- good when it is not: a meta made meanwhile is kept for longer than that, and has another base.
    meta.base = string.format('~%d', math.floor(redis.call('TIME')[1] / 3600))
  end
elseif meta.offset == 0 then
  redis.call('EXPIRE', KEYS[2], keep)
end
local length = redis.call('LLEN', KEYS[3])
local oldest = meta.offset - length + 1
local after, before, limit, mode = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
local low, high = math.max(oldest, after + 1), meta.offset
if before > 0 then
  high = math.min(high, before - 1)
end
if mode == 'a' then
  high = math.min(high, low + limit - 1)
elseif mode == 'p' then
  high = low - 1
else
  low = math.max(low, high - limit + 1)
end
local entries = {}
if low <= high then
  entries = redis.call('LRANGE', KEYS[3], low - oldest, high - oldest)
end
return {meta_text(meta, token), length, low, entries}
