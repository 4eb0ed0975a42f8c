-- The live board: who runs what, who waits. One script, so that every step is atomic.
--
-- Keys
--   gt:board:slots:<node>/<model>  hash: "<job>:<attempt>" -> "<lease> <owner> <bytes> <placed at, ms>"
--   gt:board:places                set of "<node>/<model>" that have, or had, attempts
--   gt:board:bytes                 hash: node -> bytes of bodies under way there (recounted from the slots)
--   gt:board:queue:<model>         sorted set: waiting job -> its turn
--   gt:board:turns:<model>         hash: tenant -> last virtual finish time; "" -> the virtual clock
--   gt:board:waiting               sorted set: job -> when it gives up (ms); all models
--   gt:board:wait:<job>            hash: what is needed to place a waiting job
--   gt:nodes:slots                 hash, written by the registry: "<node>/<model>" -> requests at once
--
-- Waiting jobs take turns by start-time fair queueing (Goyal, Vin, Cheng: SIGCOMM 1996): each tenant's jobs
-- are spaced one virtual second apart from the time the tenant came, so a tenant with one job waits for at
-- most one job of each other tenant. Priority comes first: a class of its own, 1e9 virtual seconds apart.

local QUEUE, TURNS, WAIT, SLOTS = 'gt:board:queue:', 'gt:board:turns:', 'gt:board:wait:', 'gt:board:slots:'
local WAITING, PLACES, BYTES = 'gt:board:waiting', 'gt:board:places', 'gt:board:bytes'
local CAPACITY = 'gt:nodes:slots'
local PRIORITY_STEP = 1e9

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function free_slots(place)
  local capacity = tonumber(redis.call('HGET', CAPACITY, place) or '0')
  return capacity - redis.call('HLEN', SLOTS .. place)
end

local function has_room(node, bytes, node_bytes)
  local used = tonumber(redis.call('HGET', BYTES, node) or '0')
  return used == 0 or used + bytes <= node_bytes
end

local function alive(node)
  return redis.call('EXISTS', 'gt:node:' .. node .. ':lease') == 1
end

-- Take a slot and deliver the work, in one step.
local function put(node, model, ref, lease, owner, work)
  local place = node .. '/' .. model
  redis.call('HSET', SLOTS .. place, ref, lease .. ' ' .. owner .. ' ' .. #work .. ' ' .. now_ms())
  redis.call('SADD', PLACES, place)
  redis.call('HINCRBY', BYTES, node, #work)
  redis.call('XADD', 'gt:node:' .. node .. ':inbox', '*', 'm', work)
end

local function forget_waiting(job, model)
  redis.call('DEL', WAIT .. job)
  redis.call('ZREM', WAITING, job)
  local removed = redis.call('ZREM', QUEUE .. model, job)
  if redis.call('EXISTS', QUEUE .. model) == 0 then redis.call('DEL', TURNS .. model) end
  return removed
end

-- Place waiting jobs while this place has free slots. Returns how many were placed.
local function fill(node, model, node_bytes)
  local place, placed = node .. '/' .. model, 0
  local free = free_slots(place)
  if free <= 0 or redis.call('EXISTS', QUEUE .. model) == 0 or not alive(node) then return 0 end
  local from = 0
  while free > 0 do
    -- The head of the queue may be barred from this node (it failed there), so look a little further.
    local jobs = redis.call('ZRANGE', QUEUE .. model, from, from + 31)
    if #jobs == 0 then break end
    for _, job in ipairs(jobs) do
      local w = redis.call('HMGET', WAIT .. job, 'ref', 'lease', 'owner', 'work', 'tried', 'start', 'only')
      if not w[1] or (w[3] ~= '' and redis.call('EXISTS', 'gt:web:' .. w[3]) == 0) then
        forget_waiting(job, model)  -- whoever asked is gone
      elseif string.find(w[5], ' ' .. node .. ' ', 1, true)
          or ((w[7] or '') ~= '' and not string.find(w[7], ' ' .. node .. ' ', 1, true))
          or not has_room(node, #w[4], node_bytes) then
        from = from + 1
      else
        put(node, model, w[1], w[2], w[3], w[4])
        redis.call('HSET', TURNS .. model, '', w[6])
        forget_waiting(job, model)
        if w[3] ~= '' then
          redis.call('XADD', 'gt:reply:' .. w[3], 'NOMKSTREAM', '*', 'p', w[1] .. ' ' .. w[2] .. ' ' .. node)
        end
        free, placed = free - 1, placed + 1
        if free <= 0 then break end
      end
    end
    if from >= 256 then break end
  end
  return placed
end

local function enqueue(job, model, ref, lease, owner, tenant, priority, tried, only, give_up_ms, work)
  local turns = TURNS .. model
  local clock = tonumber(redis.call('HGET', turns, '') or '0')
  local start = math.max(clock, tonumber(redis.call('HGET', turns, 't' .. tenant) or '0'))
  redis.call('HSET', turns, 't' .. tenant, start + 1)
  redis.call('HSET', WAIT .. job, 'ref', ref, 'lease', lease, 'owner', owner, 'work', work, 'tried', tried,
             'only', only, 'start', start, 'model', model)
  redis.call('ZADD', WAITING, give_up_ms, job)
  redis.call('ZADD', QUEUE .. model, start + 1 - priority * PRIORITY_STEP, job)
  return redis.call('ZRANK', QUEUE .. model, job)
end

local verbs = {}

-- job attempt lease owner model tenant priority work wait_seconds per_model total node_bytes tried only node...
-- `only`: the nodes that may see it; empty: all
function verbs.reserve(a)
  local job, ref, lease, owner, model = a[1], a[1] .. ':' .. a[2], a[3], a[4], a[5]
  local tenant, priority, work, wait_s = a[6], tonumber(a[7]), a[8], tonumber(a[9])
  local per_model, total, node_bytes, tried = tonumber(a[10]), tonumber(a[11]), tonumber(a[12]), a[13]
  local only = a[14]
  for i = 15, #a do  -- asked again after an answer was lost: the slot may be taken already
    if redis.call('HEXISTS', SLOTS .. a[i] .. '/' .. model, ref) == 1 then return {'placed', a[i]} end
  end
  if redis.call('EXISTS', WAIT .. job) == 1 then
    return {'waiting', redis.call('ZRANK', QUEUE .. model, job) or 0}
  end
  for i = 15, #a do
    if free_slots(a[i] .. '/' .. model) > 0 and has_room(a[i], #work, node_bytes) and alive(a[i]) then
      put(a[i], model, ref, lease, owner, work)
      return {'placed', a[i]}
    end
  end
  local ahead = redis.call('ZCARD', QUEUE .. model)
  if wait_s <= 0 or ahead >= per_model or redis.call('ZCARD', WAITING) >= total then
    return {'full', ahead}
  end
  return {'waiting', enqueue(job, model, ref, lease, owner, tenant, priority, tried, only, now_ms() + wait_s * 1000, work)}
end

-- node model ref node_bytes: give a slot back and hand it to whoever waits
function verbs.release(a)
  local node, model, place = a[1], a[2], a[1] .. '/' .. a[2]
  local entry = redis.call('HGET', SLOTS .. place, a[3])
  if entry then
    redis.call('HDEL', SLOTS .. place, a[3])
    local bytes = string.match(entry, '^%S+ %S* (%d+) ')
    if redis.call('HINCRBY', BYTES, node, -tonumber(bytes)) <= 0 then redis.call('HDEL', BYTES, node) end
    if redis.call('EXISTS', SLOTS .. place) == 0 then redis.call('SREM', PLACES, place) end
  end
  return {entry and 1 or 0, fill(node, model, tonumber(a[4]))}
end

-- job: stop waiting. 1 if it did wait
function verbs.leave(a)
  local model = redis.call('HGET', WAIT .. a[1], 'model')
  if not model then return redis.call('ZREM', WAITING, a[1]) end
  return forget_waiting(a[1], model)
end

-- node_bytes place...: new capacity may have come
function verbs.fill(a)
  local placed = 0
  for i = 2, #a do
    local node, model = string.match(a[i], '^([^/]+)/(.+)$')
    placed = placed + fill(node, model, tonumber(a[1]))
  end
  return placed
end

-- All attempts on the board: place, ref, entry, place, ref, entry, ...
function verbs.held(a)
  local out = {}
  for _, place in ipairs(redis.call('SMEMBERS', PLACES)) do
    local entries = redis.call('HGETALL', SLOTS .. place)
    for i = 1, #entries, 2 do
      out[#out + 1] = place
      out[#out + 1] = entries[i]
      out[#out + 1] = entries[i + 1]
    end
  end
  return out
end

-- Attempts in flight by place: place, count, place, count, ...
function verbs.loads(a)
  local out = {}
  for _, place in ipairs(redis.call('SMEMBERS', PLACES)) do
    out[#out + 1] = place
    out[#out + 1] = redis.call('HLEN', SLOTS .. place)
  end
  return out
end

-- model...: how many wait in all, and for each of these models
function verbs.depths(a)
  local out = {redis.call('ZCARD', WAITING)}
  for i = 1, #a do out[#out + 1] = redis.call('ZCARD', QUEUE .. a[i]) end
  return out
end

-- job: its position in its queue, from 0; -1 if it does not wait
function verbs.position(a)
  local model = redis.call('HGET', WAIT .. a[1], 'model')
  return model and redis.call('ZRANK', QUEUE .. model, a[1]) or -1
end

-- Jobs without a waiting process that have waited too long
function verbs.overdue(a)
  return redis.call('ZRANGEBYSCORE', WAITING, '-inf', now_ms(), 'LIMIT', 0, 100)
end

local verb = table.remove(ARGV, 1)
return verbs[verb](ARGV)
