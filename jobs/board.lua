-- The live board: who runs what, who waits. One script with `quick.lua` and `breaker.lua`, so that every step is
-- atomic. What is here works on Redis itself, step by step.
--
-- Keys
--   gt:board:slots:<node>/<model>  hash: "<job>:<attempt>" -> "<lease> <owner> <bytes> <placed at, ms>", and
--                                  " <opening>" for work placed while that opening of the breaker lasted
--   gt:board:places                set of "<node>/<model>" that have, or had, attempts
--   gt:board:bytes                 hash: node -> bytes of bodies under way there (recounted from the slots)
--   gt:board:queue:<model>         sorted set: waiting job -> its turn
--   gt:board:turns:<model>         hash: "c<priority>" -> virtual clock; "t<priority> <tenant>" -> the tenant's
--                                  last virtual finish time; "last" -> when the queue was last served (ms)
--   gt:board:waiting               sorted set: job -> when it gives up (ms); all models
--   gt:board:tenants               hash: tenant -> how many of its jobs wait; all models
--   gt:board:wait:<job>            hash: what is needed to place a waiting job
--   gt:drain:<model>               hash: "interval" -> mean ms between placements out of the queue, "n" samples
--   gt:nodes:slots                 hash, written by the registry: "<node>/<model>" -> requests at once
--
-- Waiting jobs take turns by start-time fair queueing (Goyal, Vin, Cheng: SIGCOMM 1996): each tenant's jobs
-- are spaced one virtual second apart from the time the tenant came, so a tenant with one job waits for at
-- most one job of each other tenant. Priority comes first: each is a class of its own with its own clock, 1e9
-- virtual seconds apart.

local TURNS, TENANTS, DRAIN = 'gt:board:turns:', 'gt:board:tenants', 'gt:drain:'
local PRIORITY_STEP = 1e9

local function free_slots(place)
  local capacity = tonumber(redis.call('HGET', CAPACITY, place) or '0')
  return capacity - redis.call('HLEN', SLOTS .. place)
end

local function has_room(node, bytes, node_bytes)
  local used = tonumber(redis.call('HGET', BYTES, node) or '0')
  return used == 0 or used + bytes <= node_bytes
end

-- Take a slot and deliver the work, in one step. `how` and `b` as from `gate`.
local function put(node, model, ref, lease, owner, work, how, b)
  local place = node .. '/' .. model
  local entry = entry_of(lease, owner, work)
  if b then
    entry = entry .. ' ' .. b.opening
    if how == 'probe' then
      b.probe = ref
      keep_breaker(place, b)
    end
  end
  redis.call('HSET', SLOTS .. place, ref, entry)
  redis.call('SADD', PLACES, place)
  redis.call('HINCRBY', BYTES, node, #work)
  deliver(node, owner, work)
end

-- Take a job off its queue. `left`: it was not placed.
local function forget_waiting(job, model, left)
  local w = redis.call('HMGET', WAIT .. job, 'tenant', 'priority')
  redis.call('DEL', WAIT .. job)
  redis.call('ZREM', WAITING, job)
  local removed = redis.call('ZREM', QUEUE .. model, job)
  if w[1] and redis.call('HINCRBY', TENANTS, w[1], -1) <= 0 then
    redis.call('HDEL', TENANTS, w[1])
    if left then  -- what it never used must not set it back when it comes again
      local turns, finish = TURNS .. model, 't' .. w[2] .. ' ' .. w[1]
      local clock = tonumber(redis.call('HGET', turns, 'c' .. w[2]) or '0')
      if tonumber(redis.call('HGET', turns, finish) or '0') > clock + 1 then
        redis.call('HSET', turns, finish, clock + 1)
      end
    end
  end
  if redis.call('EXISTS', QUEUE .. model) == 0 then redis.call('DEL', TURNS .. model) end
  if redis.call('EXISTS', WAITING) == 0 then redis.call('DEL', TENANTS) end
  return removed
end

-- So many left the queue now: weigh that into the mean interval, evenly at first, then an eighth for each.
local function note_drain(model, placed, last)
  local now = now_ms()
  if last and placed > 0 then
    local known = redis.call('HMGET', DRAIN .. model, 'interval', 'n')
    local interval, n = tonumber(known[1] or '0'), tonumber(known[2] or '0')
    local weight = math.max(placed / (n + placed), 1 - 0.875 ^ placed)
    interval = interval + weight * ((now - last) / placed - interval)
    redis.call('HSET', DRAIN .. model, 'interval', string.format('%.3f', interval), 'n', math.min(n + placed, 1000))
    redis.call('PEXPIRE', DRAIN .. model, REMEMBER_MS)
  end
  if redis.call('EXISTS', QUEUE .. model) == 1 then
    redis.call('HSET', TURNS .. model, 'last', string.format('%.0f', now))
  end
end

local function interval_of(model)
  return redis.call('HGET', DRAIN .. model, 'interval') or ''
end

-- Place waiting jobs while this place has free slots. Returns how many were placed.
local function fill(node, model, node_bytes)
  local place, placed, turns = node .. '/' .. model, 0, TURNS .. model
  local free = free_slots(place)
  if free <= 0 or redis.call('EXISTS', QUEUE .. model) == 0 or not alive(node) then return 0 end
  local how, b = gate(place)
  local sound = how == 'shut' and sound_nodes(model)
  local last = tonumber(redis.call('HGET', turns, 'last') or '')
  local from = 0
  while free > 0 do
    -- The head of the queue may be barred from this node (it failed there), so look a little further.
    local jobs = redis.call('ZRANGE', QUEUE .. model, from, from + 31)
    if #jobs == 0 then break end
    for _, job in ipairs(jobs) do
      local w = redis.call('HMGET', WAIT .. job, 'ref', 'lease', 'owner', 'tried', 'start', 'priority', 'only')
      if not w[1] or (w[3] ~= '' and redis.call('EXISTS', 'gt:web:' .. w[3]) == 0) then
        forget_waiting(job, model, true)  -- whoever asked is gone
      elseif string.find(w[4], ' ' .. node .. ' ', 1, true)
             or ((w[7] or '') ~= '' and not string.find(w[7], ' ' .. node .. ' ', 1, true))
             or not has_room(node, redis.call('HSTRLEN', WAIT .. job, 'work'), node_bytes)
             or (how == 'shut' and any_untried(sound, w[4], w[7] or '')) then
        from = from + 1
      else
        put(node, model, w[1], w[2], w[3], redis.call('HGET', WAIT .. job, 'work'), how, b)
        local clock = 'c' .. w[6]
        if tonumber(w[5]) > tonumber(redis.call('HGET', turns, clock) or '0') then
          redis.call('HSET', turns, clock, w[5])
        end
        forget_waiting(job, model, false)
        if w[3] ~= '' then
          redis.call('XADD', 'gt:reply:' .. w[3], 'NOMKSTREAM', '*', 'p', w[1] .. ' ' .. w[2] .. ' ' .. node)
        end
        free, placed = free - 1, placed + 1
        if free <= 0 then break end
        if how == 'probe' then how, sound = 'shut', sound_nodes(model) end
      end
    end
    if from >= 256 then break end
  end
  if placed > 0 then note_drain(model, placed, last) end
  return placed
end

local function enqueue(job, model, ref, lease, owner, tenant, priority, tried, only, give_up_ms, work)
  local turns, clock, finish = TURNS .. model, 'c' .. priority, 't' .. priority .. ' ' .. tenant
  local now = tonumber(redis.call('HGET', turns, clock) or '0')
  local start = math.max(now, tonumber(redis.call('HGET', turns, finish) or '0'))
  redis.call('HSET', turns, finish, start + 1)
  redis.call('HSET', WAIT .. job, 'ref', ref, 'lease', lease, 'owner', owner, 'work', work, 'tried', tried,
             'start', start, 'model', model, 'tenant', tenant, 'priority', priority,
             'only', only)
  redis.call('HINCRBY', TENANTS, tenant, 1)
  redis.call('ZADD', WAITING, give_up_ms, job)
  redis.call('ZADD', QUEUE .. model, start + 1 - priority * PRIORITY_STEP, job)
  return redis.call('ZRANK', QUEUE .. model, job)
end

local verbs = {}

-- Whether a job that may go anywhere need not look further for a free slot: the first of the queue may go
-- anywhere too and is no larger, so a slot that came free was given to it, and new ones will be.
local function none_free(model, tried, only, work)
  if not string.find(tried, '^ *$') or only ~= '' then return false end
  local head = redis.call('ZRANGE', QUEUE .. model, 0, 0)[1]
  if not head then return false end
  local w = redis.call('HMGET', WAIT .. head, 'tried', 'only', 'owner')
  return w[1] and string.find(w[1], '^ *$') and w[2] == '' and redis.call('HSTRLEN', WAIT .. head, 'work') <= #work
         and (w[3] == '' or redis.call('EXISTS', 'gt:web:' .. w[3]) == 1)
end

-- work job attempt lease owner model tenant priority wait_seconds per_model total per_tenant node_bytes tried only
-- proof_hash proof_field few node...
-- `work` is the number of the ARGV that has it. `only`: the nodes that may see it; empty: all. `few`: 1 if these nodes are but the best of more. Where there is
-- a `proof_hash`, nothing is done unless it has the field: the answer is 'unproven'.
-- Answers 'placed' and the node; 'waiting', how many are ahead, and the drain interval (ms, or ''); 'full',
-- how many wait for the model, the interval, and which bound was met; or 'more': none of the few would do, ask
-- with all of them.
function verbs.reserve(a)
  local work, job, ref, lease, owner, model = ARGV[a[1]], a[2], a[2] .. ':' .. a[3], a[4], a[5], a[6]
  local tenant, priority, wait_s, per_model, total, per_tenant = a[7], a[8], a[9], a[10], a[11], a[12]
  local node_bytes, tried, only, few = a[13], a[14], a[15], a[18] == 1
  for i = 19, #a do  -- asked again after an answer was lost: the slot may be taken already
    if redis.call('HEXISTS', SLOTS .. a[i] .. '/' .. model, ref) == 1 then return {'placed', a[i]} end
  end
  if redis.call('EXISTS', WAIT .. job) == 1 then
    return {'waiting', redis.call('ZRANK', QUEUE .. model, job) or 0, interval_of(model)}
  end
  if a[16] ~= '' and redis.call('HEXISTS', a[16], a[17]) == 0 then return {'unproven'} end
  local shut, shut_by
  for i = 19, #a do
    local place = a[i] .. '/' .. model
    if free_slots(place) > 0 and has_room(a[i], #work, node_bytes) and alive(a[i]) then
      local how, b = gate(place)
      if how ~= 'shut' then
        put(a[i], model, ref, lease, owner, work, how, b)
        return {'placed', a[i]}
      elseif not shut then
        shut, shut_by = a[i], b
      end
    end
  end
  if few and not none_free(model, tried, only, work) then return {'more'} end
  if shut and not few and not any_untried(sound_nodes(model), tried, only) then
    put(shut, model, ref, lease, owner, work, 'shut', shut_by)
    return {'placed', shut}
  end
  local ahead = redis.call('ZCARD', QUEUE .. model)
  local bound
  if wait_s <= 0 then bound = 'slots'
  elseif ahead >= per_model then bound = 'model'
  elseif redis.call('ZCARD', WAITING) >= total then bound = 'total'
  elseif tonumber(redis.call('HGET', TENANTS, tenant) or '0') >= per_tenant then bound = 'tenant' end
  if bound then return {'full', ahead, interval_of(model), bound} end
  local rank = enqueue(job, model, ref, lease, owner, tenant, priority, tried, only, now_ms() + wait_s * 1000, work)
  return {'waiting', rank, interval_of(model)}
end

-- node model ref node_bytes verdict fingerprint and, with a verdict: faults window_ms open_ms longest_ms
-- strikes_ms. Give a slot back, once, with what its end says of the place and of the request, and hand it to
-- whoever waits. Answers whether it was held, how many were placed, and the request's strikes.
function verbs.release(a)
  local node, model, place = a[1], a[2], a[1] .. '/' .. a[2]
  local verdict, fingerprint, strikes = a[5], a[6], 0
  local entry = redis.call('HGET', SLOTS .. place, a[3])
  if entry then
    redis.call('HDEL', SLOTS .. place, a[3])
    local bytes = string.match(entry, '^%S+ %S* (%d+) ')
    if redis.call('HINCRBY', BYTES, node, -tonumber(bytes)) <= 0 then redis.call('HDEL', BYTES, node) end
    if redis.call('EXISTS', SLOTS .. place) == 0 then redis.call('SREM', PLACES, place) end
    if verdict ~= '' then
      judge(place, entry, verdict, tonumber(a[7]), tonumber(a[8]), tonumber(a[9]), tonumber(a[10]))
      if fingerprint ~= '' then
        if verdict == 'ok' then redis.call('HDEL', STRIKES, fingerprint)
        else strikes = strike(fingerprint, tonumber(a[11])) end
      end
    end
  end
  return {entry and 1 or 0, fill(node, model, tonumber(a[4])), strikes}
end

-- job: stop waiting. 1 if it did wait
function verbs.leave(a)
  local model = redis.call('HGET', WAIT .. a[1], 'model')
  if not model then return redis.call('ZREM', WAITING, a[1]) end
  return forget_waiting(a[1], model, true)
end

-- Some of those that wait, by when they give up: from this score on, and where the next page begins ('' : it was
-- the last). Ten thousand at once would hold everybody up. A page may begin with what the last one ended with.
local function page(from, count)
  local found = redis.call('ZRANGE', WAITING, from, '+inf', 'BYSCORE', 'LIMIT', 0, count)
  if #found < count then return found, '' end
  local next = redis.call('ZSCORE', WAITING, found[count])
  if next == from then  -- more than a page gives up at the same moment
    return redis.call('ZRANGE', WAITING, from, '+inf', 'BYSCORE'), ''
  end
  return found, next
end

-- owner from count: a page of its waiting jobs ("*": everybody's): next page, job, ref, owner, ...
function verbs.waiting(a)
  local jobs, next = page(a[2], tonumber(a[3]))
  local out = {next}
  for _, job in ipairs(jobs) do
    local w = redis.call('HMGET', WAIT .. job, 'ref', 'owner')
    if w[1] and (a[1] == '*' or a[1] == w[2]) then
      out[#out + 1] = job
      out[#out + 1] = w[1]
      out[#out + 1] = w[2]
    end
  end
  return out
end

-- from count: drop a page of what waits nowhere. Next page, and how much was wrong
function verbs.prune_waiting(a)
  local wrong, jobs, next = 0, page(a[1], tonumber(a[2]))
  for _, job in ipairs(jobs) do
    if redis.call('EXISTS', WAIT .. job) == 0 then wrong = wrong + redis.call('ZREM', WAITING, job) end
  end
  return {next, wrong}
end

-- model from count: the same of a model's queue, by rank
function verbs.prune_queue(a)
  local model, from, count, wrong = a[1], tonumber(a[2]), tonumber(a[3]), 0
  local jobs = redis.call('ZRANGE', QUEUE .. model, from, from + count - 1)
  for _, job in ipairs(jobs) do
    if redis.call('HGET', WAIT .. job, 'model') ~= model then
      wrong = wrong + redis.call('ZREM', QUEUE .. model, job)
    end
  end
  local next = #jobs == count and from + count - wrong or ''
  if redis.call('EXISTS', QUEUE .. model) == 0 then wrong = wrong + redis.call('DEL', TURNS .. model) end
  return {next, wrong}
end

-- Drop places without attempts and count the bytes under way anew. How much was wrong
function verbs.prune_places(a)
  local wrong = 0
  local bytes = {}
  for _, place in ipairs(redis.call('SMEMBERS', PLACES)) do
    local entries = redis.call('HVALS', SLOTS .. place)
    if #entries == 0 then wrong = wrong + redis.call('SREM', PLACES, place) end
    local node = string.match(place, '^([^/]+)/')
    for _, entry in ipairs(entries) do
      bytes[node] = (bytes[node] or 0) + tonumber(string.match(entry, '^%S+ %S* (%d+) '))
    end
  end
  for _, node in ipairs(redis.call('HKEYS', BYTES)) do bytes[node] = bytes[node] or 0 end
  for node, sum in pairs(bytes) do
    if tonumber(redis.call('HGET', BYTES, node) or '0') ~= sum then
      wrong = wrong + 1
      if sum > 0 then redis.call('HSET', BYTES, node, sum) else redis.call('HDEL', BYTES, node) end
    end
  end
  return wrong
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

-- Open breakers, as place, record, ms until it may be probed (0: now), ...; those that nobody has probed for
-- long are forgotten.
function verbs.breakers(a)
  local now, out, all = now_ms(), {}, redis.call('HGETALL', BREAKERS)
  for i = 1, #all, 2 do
    local ends = tonumber(string.match(all[i + 1], '^%d+ (%d+)'))
    if ends + REMEMBER_MS < now then
      redis.call('HDEL', BREAKERS, all[i])
    else
      out[#out + 1] = all[i]
      out[#out + 1] = all[i + 1]
      out[#out + 1] = math.max(0, ends - now)
    end
  end
  return out
end

-- What each process looks at again and again: loads, breakers, and strikes as fingerprint, count, ms left, ...
function verbs.look(a)
  local now, strikes, all = now_ms(), {}, redis.call('HGETALL', STRIKES)
  for i = 1, #all, 2 do
    local count, ends = string.match(all[i + 1], '^(%d+) (%d+)$')
    if tonumber(ends) <= now then
      redis.call('HDEL', STRIKES, all[i])
    else
      strikes[#strikes + 1] = all[i]
      strikes[#strikes + 1] = tonumber(count)
      strikes[#strikes + 1] = tonumber(ends) - now
    end
  end
  return {verbs.loads(a), verbs.breakers(a), strikes}
end

-- model...: how many wait in all, and for each of these models
function verbs.depths(a)
  local out = {redis.call('ZCARD', WAITING)}
  for i = 1, #a do out[#out + 1] = redis.call('ZCARD', QUEUE .. a[i]) end
  return out
end

-- job: its position in its queue, from 0 (-1 if it does not wait), and the drain interval (ms, or '')
function verbs.position(a)
  local model = redis.call('HGET', WAIT .. a[1], 'model')
  if not model then return {-1, ''} end
  return {redis.call('ZRANK', QUEUE .. model, a[1]) or -1, interval_of(model)}
end

-- Jobs without a waiting process that have waited too long
function verbs.overdue(a)
  return redis.call('ZRANGEBYSCORE', WAITING, '-inf', now_ms(), 'LIMIT', 0, 100)
end

return verbs
