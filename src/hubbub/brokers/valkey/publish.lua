-- Publish a batch: numbers, history and fan-out of all its publications as one act.
-- KEYS: fence, writer, then per group: meta and history where it has history, and the idempotency key where it has one.
-- ARGV: fence as the node knows it, token, batch number, unix seconds, PUBLISH or SPUBLISH, number of the oldest batch that the
--   node has no answer to, number of the node's connection; then per group:
--   pub/sub channel, flags (h: has history, o: an idempotency key follows among the keys, v: a version, r: they have their
--   offsets from elsewhere), count, [r: the node that has told its own subscribers of them]
--   [h: base for a new meta, size, ttl (ms), bytes, seconds for which the meta is kept] [o: its seconds] [v: the version],
--   then the publications.
-- Returns per group "epoch offset" (of its first publication), joined by ";"; "." and a flag before it: a (again: there
-- was one with this idempotency key), s (superseded: there is a newer version).
local fence = redis.call('GET', KEYS[1])
if fence ~= ARGV[1] then
  return redis.error_reply('FENCED the engine is another one than this node knows')
end
local known = redis.call('HMGET', KEYS[2], 'c', ARGV[3], ARGV[3] - 1)
if known[1] and known[1] - ARGV[7] > 0 then
  -- a given up connection's bytes may come at any time, and answers are remembered for 32 batches
  return redis.error_reply('LATE the node has another connection')
end
if known[2] then
  return known[2] -- the connection broke before its answer came
end
if ARGV[3] - ARGV[6] > 0 and not known[3] then
  return redis.error_reply('EARLY the batch before it has not been carried out')
end
local token, now, send = ARGV[2], tonumber(ARGV[4]), ARGV[5]
local results = {}
local kept = false
local key, arg, last = 3, 8, #ARGV

local function header(count)
  if count < 16 then
    return string.char(0x90 + count)
  end
  return string.char(0xdc, math.floor(count / 256), count % 256)
end

while arg <= last do
  local channel, flags, count = ARGV[arg], ARGV[arg + 1], tonumber(ARGV[arg + 2])
  arg = arg + 3
  local meta, meta_key, history, size, ttl, bytes, keep, once, once_seconds, version
  if string.find(flags, 'h', 1, true) then
    meta_key, history = KEYS[key], KEYS[key + 1]
    key = key + 2
    meta = meta_read(meta_key, history, token, ARGV[arg])
    size, ttl, bytes, keep = tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2]), tonumber(ARGV[arg + 3]), ARGV[arg + 4]
    arg = arg + 5
  end
  if string.find(flags, 'o', 1, true) then
    once, once_seconds = KEYS[key], ARGV[arg]
    key, arg = key + 1, arg + 1
  end
  if string.find(flags, 'v', 1, true) then
    version = tonumber(ARGV[arg])
    arg = arg + 1
  end
  local from = '0'
  if flags == 'r' then
    from = ARGV[arg]
    arg = arg + 1
  end
  local first = arg
  arg = arg + count
  local answered = once and redis.call('GET', once)
  if answered then
    results[#results + 1] = '.a ' .. answered
  elseif version and meta and meta.version and version <= meta.version then
    results[#results + 1] = '.s ' .. meta.base .. '.' .. token .. ' ' .. meta.offset
    if meta.renewed then
      redis.call('SET', meta_key, meta_text(meta, token), 'EX', keep)
    end
  else
    local text = table.concat(ARGV, '', first, arg - 1)
    local body = header(count) .. text
    if meta then
      kept = true
      local epoch = meta.base .. '.' .. token
      local offset = meta.offset + 1
      local length = redis.call('RPUSH', history, unpack(ARGV, first, arg - 1))
      if length == count then
        meta.bytes, meta.refreshed = 0, 0
      end
      meta.offset = meta.offset + count
      meta.bytes = meta.bytes + #text
      if length > size then
        for _, old in ipairs(redis.call('LPOP', history, length - size)) do
          meta.bytes = meta.bytes - #old
        end
        length = size
      end
      -- now and then, what is too old or too much; a reader passes over the old ones anyway
      if meta.bytes > bytes or meta.offset % 16 == 0 then
        local steps = 0
        while length > 1 and steps < 256 do
          local oldest = redis.call('LINDEX', history, 0)
          -- an entry ends in its time (8 bytes) and its offset (1 byte, 0: it is known by the place)
          if meta.bytes <= bytes and struct.unpack('>d', oldest, #oldest - 8) * 1000 + ttl >= now * 1000 then
            break
          end
          redis.call('LPOP', history)
          meta.bytes = meta.bytes - #oldest
          length, steps = length - 1, steps + 1
        end
      end
      if meta.bytes < 0 then
        meta.bytes = 0
      end
      -- (another node's clock may be ahead)
      if meta.refreshed > now or (now - meta.refreshed) * 4000 >= ttl then
        redis.call('PEXPIRE', history, math.ceil(ttl * 1.25) + 1000)
        meta.refreshed = now
      end
      if version then
        meta.version = version
      end
      redis.call('SET', meta_key, meta_text(meta, token), 'EX', keep)
      redis.call(send, channel, epoch .. ' ' .. offset .. '\n' .. body)
      local result = epoch .. ' ' .. offset
      if once then
        redis.call('SET', once, result, 'EX', once_seconds)
      end
      results[#results + 1] = result
    else
      redis.call(send, channel, '- ' .. from .. '\n' .. body)
      results[#results + 1] = '- 0'
    end
  end
end
local answer = table.concat(results, ';')
if kept then
  redis.call('HSET', KEYS[2], ARGV[3], answer, 'c', ARGV[7])
else
  redis.pcall('HSET', KEYS[2], ARGV[3], answer, 'c', ARGV[7]) -- what is only handed on does not depend on the engine's memory
end
redis.call('HDEL', KEYS[2], ARGV[3] - 32)
redis.call('EXPIRE', KEYS[2], 600)
return answer
