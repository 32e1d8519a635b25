#!lua flags=allow-oom
-- (With a full engine, too: or who fills it would have each node's limits for themselves. A short key for each user and API key
-- that just sent much; it ends within the time that a burst takes to come back.)
-- A token bucket (the generic cell rate algorithm: its state is when it will be full again): takes up to so many.
-- KEYS: the bucket. ARGV: microseconds per token, tokens that it holds, tokens wanted.
-- Returns how many there were, and the microseconds until it is full.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, burst, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local full = math.max(now, tonumber(redis.call('GET', KEYS[1]) or 0))
local count = math.min(wanted, math.floor((now - full) / interval + burst + 0.001))
if count > 0 then
    full = full + count * interval
    redis.call('SET', KEYS[1], string.format('%.0f', full), 'PX', math.max(1, math.ceil((full - now) / 1000)))
end
return {math.max(0, count), string.format('%.0f', full - now)}
