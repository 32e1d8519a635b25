#!lua flags=allow-oom
-- What the scripts share that act for a node. (With a full engine, too: what a node has there is bounded by its connections.)
-- What a partition knows of a node's lease, one string:
--   life connection ended
-- life: how often the lease has begun (beat.lua counts). connection: of the node, the newest that said anything here.
-- ended: the last life that is over: its people were, or are being, forgotten.
-- TCP may still bring, for many minutes, what a given up connection or a dead node had sent. It asks for what is not so any
-- more, and nobody would ever take it back: so it is refused.
local LEASE_KEPT = 3600 -- seconds after the last word: longer than anything is on its way
local NEVER = 9007199254740991 -- a life that nobody reaches

local function lease_read(key)
  local life, connection, ended = string.match(redis.call('GET', key) or '', '^(%d+) (%d+) (%d+)$')
  if life then
    return {life = tonumber(life), connection = tonumber(connection), ended = tonumber(ended)}
  end
end

local function lease_write(key, life, connection, ended)
  redis.call('SET', key, string.format('%d %d %d', life, connection, ended), 'EX', LEASE_KEPT)
end

local function lease_is_late(lease, life, connection)
  return life < lease.life or life <= lease.ended or connection < lease.connection
end
