-- The two steps of the board that every request takes, in their usual form, and where everything else is found.
-- First part of the script: `breaker.lua` and `board.lua` go on, inside `define`, which is called when something
-- unusual comes. (To define all of their functions costs as much as ten commands, in each call of the script.)
--
-- A quick form reads what a place needs once for all steps of the call, and what it has changed is written at the end
-- (`sync`). It gives up (nil) where anything is unusual: then the step works on Redis itself, after `sync`.

local QUEUE, WAIT, WAITING = 'gt:board:queue:', 'gt:board:wait:', 'gt:board:waiting'
local SLOTS, PLACES, BYTES = 'gt:board:slots:', 'gt:board:places', 'gt:board:bytes'
local CAPACITY, BREAKERS = 'gt:nodes:slots', 'gt:breakers'

local define, defined  -- all verbs, as a table

local now  -- the same moment for all steps of a call

local function now_ms()
  now = now or time()[1] * 1000 + math.floor(time()[2] / 1000)
  return now
end

local function alive(node)
  return redis.call('EXISTS', 'gt:node:' .. node .. ':lease') == 1
end

local function entry_of(lease, owner, work)
  return string.format('%s %s %d %d', lease, owner, #work, now_ms())
end

-- Work that somebody waits for never reaches the append-only file, nor a replica: it lies in the inbox for as long as
-- the node takes to read it, and what gets lost there the recount has done again. Prompts are most of what is written.
local function deliver(node, owner, work)
  if owner ~= '' then redis.set_repl(redis.REPL_NONE) end
  redis.call('XADD', 'gt:node:' .. node .. ':inbox', '*', 'm', work)
  if owner ~= '' then redis.set_repl(redis.REPL_ALL) end
end

local places, nodes, queues = {}, {}, {}
local entries, proofs = {}, {}  -- read for all steps at once: by place and ref; by hash and field
local none_waits = false  -- of the jobs that slots are asked for

local function node_of(name)
  local n = nodes[name]
  if not n then
    n = {name = name, alive = alive(name), bytes = tonumber(redis.call('HGET', BYTES, name) or '0'), more = 0}
    nodes[name] = n
  end
  return n
end

local function place_of(node, model)
  local name = node .. '/' .. model
  local p = places[name]
  if not p then
    p = {name = name, capacity = tonumber(redis.call('HGET', CAPACITY, name) or '0'), puts = {}, takes = {}, fresh = {}}
    p.held = redis.call('HLEN', SLOTS .. name)
    p.breaker = redis.call('HEXISTS', BREAKERS, name) == 1
    p.before = p.held
    places[name] = p
  end
  return p
end

local function queued(model)
  if queues[model] == nil then queues[model] = redis.call('EXISTS', QUEUE .. model) == 1 end
  return queues[model]
end

-- Write what the quick forms have changed, and forget what they knew.
local function sync()
  for name, p in pairs(places) do
    if #p.takes > 0 then redis.call('HDEL', SLOTS .. name, unpack(p.takes)) end
    if #p.puts > 0 then redis.call('HSET', SLOTS .. name, unpack(p.puts)) end
    if p.held == 0 then
      if p.before > 0 then redis.call('SREM', PLACES, name) end
    elseif p.before == 0 then
      redis.call('SADD', PLACES, name)
    end
  end
  for name, n in pairs(nodes) do
    if n.bytes + n.more <= 0 then
      if n.bytes ~= 0 or n.more ~= 0 then redis.call('HDEL', BYTES, name) end
    elseif n.more ~= 0 then
      redis.call('HINCRBY', BYTES, name, n.more)
    end
  end
  places, nodes, queues, entries, none_waits = {}, {}, {}, {}, false
end

finish = sync

-- Read at once what the quick forms of all steps are going to ask for.
begin = function()
  local refs, fields = {}, {}
  local waits = {}
  local function note(where, key, field)
    local known = where[key] or {}
    known[#known + 1] = field
    where[key] = known
  end
  for _, step in ipairs(steps) do
    local verb = step[#step]
    if verb == 'release' then note(refs, step[1] .. '/' .. step[2], step[3])
    elseif verb == 'reserve' then
      waits[#waits + 1] = WAIT .. step[2]
      for i = 19, #step - 1 do note(refs, step[i] .. '/' .. step[6], step[2] .. ':' .. step[3]) end
      if step[16] ~= '' then note(fields, step[16], step[17]) end
    end
  end
  local function read(where, prefix, into)
    for key, names in pairs(where) do
      local found, values = {}, redis.call('HMGET', prefix .. key, unpack(names))
      for i, name in ipairs(names) do found[name] = values[i] end
      into[key] = found
    end
  end
  read(refs, SLOTS, entries)
  read(fields, '', proofs)
  none_waits = #waits > 0 and redis.call('EXISTS', unpack(waits)) == 0
end

-- The quick form: a slot is free on a place without a breaker, and this was not asked for before.
local function reserve_quickly(a)
  if not none_waits or (a[16] ~= '' and not proofs[a[16]][a[17]]) then return nil end
  local work, ref, model = ARGV[a[1]], a[2] .. ':' .. a[3], a[6]
  for i = 19, #a do
    local known = entries[a[i] .. '/' .. model]
    if not known or known[ref] then return nil end
  end
  for i = 19, #a do
    local p, n = place_of(a[i], model), node_of(a[i])
    local used = n.bytes + n.more
    if p.held < p.capacity and n.alive and (used <= 0 or used + #work <= a[13]) then
      if p.breaker then return nil end
      local entry = entry_of(a[4], a[5], work)
      deliver(a[i], a[5], work)
      entries[p.name][ref] = entry
      p.fresh[ref] = true  -- not written yet: what gives it back is not for the quick form
      p.puts[#p.puts + 1] = ref
      p.puts[#p.puts + 1] = entry
      p.held, n.more = p.held + 1, n.more + #work
      return {'placed', a[i]}
    end
  end
end

-- The quick form: the slot was held, all is well, and nobody waits for it.
local function release_quickly(a)
  local place = place_of(a[1], a[2])
  local known = entries[place.name]
  local entry = known and known[a[3]]
  if not entry or place.breaker or (a[5] ~= 'ok' and a[5] ~= '') or a[6] ~= '' or queued(a[2]) then return nil end
  if place.fresh[a[3]] then return nil end
  known[a[3]] = false
  place.takes[#place.takes + 1] = a[3]
  place.held = place.held - 1
  local n = node_of(a[1])
  n.more = n.more - tonumber(string.match(entry, '^%S+ %S* (%d+) '))
  return {1, 0, 0}
end

local function slowly(verb, a)
  sync()
  defined = defined or define()
  return defined[verb](a)
end

function verbs.reserve(a)
  return reserve_quickly(a) or slowly('reserve', a)
end

function verbs.release(a)
  return release_quickly(a) or slowly('release', a)
end

setmetatable(verbs, {__index = function(_, verb)
  return function(a) return slowly(verb, a) end
end})
