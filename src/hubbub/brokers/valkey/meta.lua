-- What the scripts share: a channel's meta. One string, so that it is read with one call and written with one:
--   base generation offset bytes refreshed version [generation:end ...]
-- base: random, made with the meta. generation: the fence's token under which it was written last.
-- offset: of the newest publication. bytes: of the kept ones. refreshed: unix seconds when the history's expiry was set.
-- version: of the newest publication that had one (-: none). generation:end: older generations, and the offset that was
-- the newest when each was over: a position of an older generation up to its end still means the same (KIP-101).
local OLDER = 8

local function meta_read(key, history, token, base)
  local text = redis.call('GET', key)
  if text then
    local b, generation, offset, bytes, refreshed, version, older =
      string.match(text, '^(%S+) (%S+) (%d+) (%d+) (%d+) (%S+)(.*)$')
    if b then
      local meta = {base = b, offset = tonumber(offset), bytes = tonumber(bytes), refreshed = tonumber(refreshed),
        version = tonumber(version), older = older}
      if generation ~= token then
        -- the engine is another one, or was restarted: it may have lost what came after this offset
        meta.older = older .. ' ' .. generation .. ':' .. offset
        local _, count = string.gsub(meta.older, ' ', '')
        if count > OLDER then
          meta.older = string.gsub(meta.older, '^ %S+', '', 1)
        end
        meta.renewed = true
      end
      return meta
    end
  end
  -- The engine looks at its memory until a script's first write, and lets all that follows pass: of a name that is new,
  -- nothing may be written here, or whoever thinks of names could fill it.
  if redis.call('EXISTS', history) == 1 then
    redis.call('DEL', history) -- of a meta that was evicted: its offsets mean nothing any more
  end
  return {base = base, offset = 0, bytes = 0, refreshed = 0, older = '', renewed = true, new = true}
end

local function meta_text(meta, token)
  local version = meta.version and string.format('%d', meta.version) or '-'
  return string.format('%s %s %d %d %d %s%s', meta.base, token, meta.offset, meta.bytes, meta.refreshed, version,
    meta.older)
end
