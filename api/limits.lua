-- What a key may use: requests and tokens in any 60 seconds, requests at once, tokens for a day and a month.
-- One script, so that a request is weighed and counted in one atomic step, however many processes ask. Steps come in
-- batches (`gputorrent.steps`): what they need of a key is read once and written once, at the end of the batch.
--
-- Keys
--   gt:limits:window:<key>          hash: requests and tokens of the last 61 seconds, one bucket for each
--                                   ("r<second mod 61>", "t<...>"), their sums ("r", "t"), the second it was
--                                   brought up to ("at"), the last seconds charged ("lr", "lt")
--   gt:limits:open:<key>            hash: permit -> "<web process> <tokens reserved> <second>"; callers wait
--   gt:limits:deferred:<key>        hash: permit -> "<given up at, s> <tokens reserved> <second>"; nobody waits
--   gt:limits:allowed:<key>         hash: allowance -> "<web process> <tokens reserved> <second> <requests at once>
--                                   <accounts heard> <requests it began with>", and "" -> requests at once of all
--   gt:limits:reserved:<key>        tokens reserved by the three
--   gt:limits:spent:<key>:<period>  tokens used in a day or a month; the ledger knows better after a loss
--
-- A window of whole buckets, summed as they come and go: whatever falls into a bucket counts until all of it
-- is older than 60 s. So no 60 s ever see more than the limit, which a token bucket (GCRA) or two weighted
-- windows do not promise; it costs 61 numbers, not one for each request as a log would.
-- An open permit names its web process: it is void once that process is gone, so a kill leaks nothing.
-- An allowance (`api/allowance.py`) is many permits of one second in one: a web process whose key is far from all of
-- its limits has more requests counted than it asks for, and weighs those by itself until the second is over.

local WINDOW, OPEN, DEFERRED = 'gt:limits:window:', 'gt:limits:open:', 'gt:limits:deferred:'
local ALLOWED, RESERVED, SPENT = 'gt:limits:allowed:', 'gt:limits:reserved:', 'gt:limits:spent:'
local BUCKETS = 61
local SHARE, LEAST = 8, 8  -- an allowance is at most an eighth of what is left; there is none where that is less
local WEEK, MONTH = 7 * 86400, '2764800'  -- of 32 days

-- What this batch knows of a key. Numbers and permits that were changed are marked, until `write`.
local keys = {}

local second, now_ms = tonumber(time()[1]), time()[1] * 1000 + math.floor(time()[2] / 1000)

-- Whole numbers as text. (Lua's own way, and Redis's with an argument that is a number, is that of fractions, which
-- costs about as much as a command.)
local function text(number)
  return string.format('%d', number)
end

local R, T = 'r' .. text(second % BUCKETS), 't' .. text(second % BUCKETS)  -- the buckets of this second

-- The fields of a window, as numbers (0 where there is none).
local function read(k, fields)
  local values, numbers = redis.call('HMGET', k.window, unpack(fields)), k.numbers
  for i = 1, #fields do numbers[fields[i]] = values[i] and tonumber(values[i]) or 0 end
end

-- The names of the two buckets of a second, whose numbers are known then.
local function buckets(k, at)
  local r, t = R, T
  if at ~= second then r, t = 'r' .. text(at % BUCKETS), 't' .. text(at % BUCKETS) end
  if not k.numbers[r] then read(k, {r, t}) end
  return r, t
end

local function add(k, field, by)
  k.numbers[field] = k.numbers[field] + by
  k.changed[field] = true
end

-- Let go of the buckets that are older than the window.
local function advance(k)
  local w, at = k.window, k.numbers.at
  if second <= at and at - second < BUCKETS then return end  -- as often; or the clock was set back a little
  if math.abs(second - at) >= BUCKETS then
    redis.call('DEL', w)
    k.numbers = {r = 0, t = 0, lr = 0, lt = 0, purged = 0}
  else
    local fields = {}
    for s = at + 1, second do
      fields[#fields + 1] = 'r' .. text(s % BUCKETS)
      fields[#fields + 1] = 't' .. text(s % BUCKETS)
    end
    local old = redis.call('HMGET', w, unpack(fields))
    for i, field in ipairs(fields) do
      if old[i] then add(k, string.sub(field, 1, 1), -tonumber(old[i])) end
      k.numbers[field] = 0
    end
    redis.call('HDEL', w, unpack(fields))
  end
  k.numbers.at, k.changed.at = second, true
end

local function key_of(name)
  local k = keys[name]
  if not k then
    k = {name = name, window = WINDOW .. name, reserved = RESERVED .. name, more = 0, numbers = {}, changed = {}, spent = {}}
    k.open = {key = OPEN .. name, permits = {}, puts = {}, takes = {}}
    k.deferred = {key = DEFERRED .. name, permits = {}, puts = {}, takes = {}}
    k.allowed = {key = ALLOWED .. name, permits = {}, puts = {}, takes = {}, sum = true}
    keys[name] = k
  end
  return k
end

local function known(name)
  local k = key_of(name)
  if not k.numbers.at then
    read(k, {'at', 'r', 't', 'lr', 'lt', 'purged', R, T})
    advance(k)
  end
  return k
end

local function charge(k, at, requests, tokens)
  local r, t = buckets(k, at)
  if requests ~= 0 then
    add(k, r, requests)
    add(k, 'r', requests)
    if requests > 0 and k.numbers.lr ~= at then k.numbers.lr, k.changed.lr = at, true end
  end
  if tokens ~= 0 then
    add(k, t, tokens)
    add(k, 't', tokens)
    if tokens > 0 and k.numbers.lt ~= at then k.numbers.lt, k.changed.lt = at, true end
  end
end

-- So much more, or less, belongs to the second `since`. Once that has left the window nothing is given back any more, and
-- what came too late to be counted there counts now.
local function correct(k, since, requests, tokens)
  local at = k.numbers.at
  if at - since < BUCKETS and since <= at then
    charge(k, since, requests, tokens)
  elseif tokens > 0 then
    charge(k, at, 0, tokens)
  end
end

local function held(hash)
  if not hash.held then
    if hash.sum then hash.held = tonumber(redis.call('HGET', hash.key, '') or '0')
    else hash.held = redis.call('HLEN', hash.key) end
  end
  return hash.held
end

-- Requests under way that somebody waits for, or that may begin without being asked for.
local function at_once(k)
  return held(k.open) + held(k.allowed)
end

local function put(k, hash, permit, tokens, entry, slots)
  held(hash)
  hash.permits[permit], hash.puts[permit], hash.takes[permit] = entry, entry, nil
  hash.held, k.more = hash.held + (slots or 1), k.more + tokens
end

local function take(k, hash, permit, reserved, slots)
  held(hash)
  hash.permits[permit], hash.puts[permit], hash.takes[permit] = false, nil, true
  hash.held, k.more, k.taken = hash.held - (slots or 1), k.more - reserved, true
end

-- Of an allowance, by its entry: web process, tokens reserved, second, requests at once, accounts heard, requests
local function allowance(entry)
  local web, reserved, since, slots, heard, requests = string.match(entry, '^(%S*) (%d+) (%d+) (%d+) (%d+) (%d+)$')
  return web, tonumber(reserved), tonumber(since), tonumber(slots), tonumber(heard), tonumber(requests)
end

local function write(k)
  local w = {}
  for field in pairs(k.changed) do
    w[#w + 1] = field
    w[#w + 1] = text(k.numbers[field])
  end
  if #w > 0 then
    redis.call('HSET', k.window, unpack(w))
    -- What is charged within a second of this one need not put it off again.
    if k.changed.at or second < k.numbers.at then redis.call('EXPIRE', k.window, text(BUCKETS + 2)) end
  end
  for _, hash in ipairs({k.open, k.deferred, k.allowed}) do
    local puts, takes = {}, {}
    for permit, entry in pairs(hash.puts) do
      puts[#puts + 1] = permit
      puts[#puts + 1] = entry
    end
    for permit in pairs(hash.takes) do takes[#takes + 1] = permit end
    if hash.sum and #puts + #takes > 0 then
      puts[#puts + 1] = ''
      puts[#puts + 1] = text(hash.held)
      if hash.held == 0 then takes[#takes + 1] = '' end  -- nobody is left
    end
    if #puts > 0 then
      redis.call('HSET', hash.key, unpack(puts))
      if k.lasting and (k.changed.at or hash.sum or hash.held <= #puts) then redis.call('EXPIRE', hash.key, text(k.lasting)) end
    end
    if #takes > 0 then redis.call('HDEL', hash.key, unpack(takes)) end
    hash.puts, hash.takes = {}, {}
  end
  if k.more ~= 0 or k.taken then
    local left = redis.call('INCRBY', k.reserved, text(k.more))
    local some = (k.open.held or 0) + (k.deferred.held or 0) + (k.allowed.held or 0) > 0
    if k.taken and (left <= 0 or not some and redis.call('EXISTS', k.open.key, k.deferred.key, k.allowed.key) == 0) then
      redis.call('DEL', k.reserved)
    elseif k.lasting and (k.changed.at or left == k.more) then
      redis.call('EXPIRE', k.reserved, text(k.lasting))
    end
  end
  for period, tokens in pairs(k.spent) do
    local name = SPENT .. k.name .. ':' .. period
    local sum = redis.call('INCRBY', name, text(tokens))
    if sum == tokens then redis.call('EXPIRE', name, MONTH) end
  end
  k.changed, k.spent, k.more, k.taken = {}, {}, 0, false
end

begin = function()
  local asked = {}
  local function note(hash, permit)
    local permits = asked[hash] or {}
    permits[#permits + 1] = permit
    asked[hash] = permits
  end
  for _, step in ipairs(steps) do
    step[1] = text(step[1])
    local k, verb = key_of(step[1]), step[#step]
    if verb == 'account' then
      note(k.allowed, step[2])
    elseif verb == 'settle' then
      note(step[3] == 1 and k.open or k.deferred, step[2])
    else
      note(step[3] ~= '' and k.open or k.deferred, step[2])
      if #step > 15 then note(k.allowed, step[15]) end
    end
  end
  for hash, permits in pairs(asked) do
    local entries = redis.call('HMGET', hash.key, unpack(permits))
    for i, permit in ipairs(permits) do hash.permits[permit] = entries[i] end
  end
end

finish = function()
  for _, k in pairs(keys) do write(k) end
end

-- Milliseconds until `excess` of what is counted has left the window
local function until_free(k, kind, excess)
  write(k)
  local fields, at = {}, k.numbers.at
  for s = at - BUCKETS + 1, at do fields[#fields + 1] = kind .. text(s % BUCKETS) end
  local counts = redis.call('HMGET', k.window, unpack(fields))
  for i = 1, BUCKETS do
    excess = excess - tonumber(counts[i] or '0')
    if excess <= 0 then return math.max(1, (at + i) * 1000 - now_ms) end
  end
  return BUCKETS * 1000
end

-- Void what nobody will give back. At most once a second for each key, since it looks at every permit.
local function purge(k)
  if k.numbers.purged == k.numbers.at then return end
  k.numbers.purged, k.changed.purged = k.numbers.at, true
  write(k)
  local known_to_live = {}
  local function lives(web)
    if known_to_live[web] == nil then known_to_live[web] = redis.call('EXISTS', 'gt:web:' .. web) == 1 end
    return known_to_live[web]
  end
  local open = redis.call('HGETALL', k.open.key)
  for i = 1, #open, 2 do
    local web, reserved = string.match(open[i + 1], '^(%S*) (%d+) ')
    if not lives(web) then take(k, k.open, open[i], tonumber(reserved)) end
  end
  local allowed = redis.call('HGETALL', k.allowed.key)
  for i = 1, #allowed, 2 do
    if allowed[i] ~= '' then
      local web, reserved, _, slots = allowance(allowed[i + 1])
      if not lives(web) then take(k, k.allowed, allowed[i], reserved, slots) end
    end
  end
  local deferred = redis.call('HGETALL', k.deferred.key)
  for i = 1, #deferred, 2 do
    local give_up, reserved = string.match(deferred[i + 1], '^(%d+) (%d+) ')
    if tonumber(give_up) < k.numbers.at then take(k, k.deferred, deferred[i], tonumber(reserved)) end
  end
  write(k)
end

-- What was spent in a period: Redis's figure, or the ledger's where that is larger (Redis was emptied).
local function spent(k, key, period, ledger)
  write(k)
  local name = SPENT .. key .. ':' .. period
  local value = tonumber(redis.call('GET', name) or '0')
  if ledger > value then
    redis.call('SET', name, text(ledger), 'EX', MONTH)
    value = ledger
  end
  return value
end

-- Whether a budget has room: a verdict, when to retry, whether more than half of it is used or reserved, and what
-- is left of it with these tokens.
local function budget(k, tokens, name, limit, period, ledger)
  local used = spent(k, k.name, period, ledger)
  local function wanted() return used + tokens + tonumber(redis.call('GET', k.reserved) or '0') end
  local all = wanted()
  if all > limit then
    purge(k)
    all = wanted()
  end
  if all <= limit then return 'ok', 0, 2 * all > limit, limit - all end
  return name, used + tokens <= limit and 1000 or 0  -- what is under way may take less than it reserved
end

-- Milliseconds until nothing is left of what is counted
local function reset(count, last)
  return count > 0 and last > 0 and math.max(0, (last + BUCKETS) * 1000 - now_ms) or 0
end

-- Count more requests like the one just admitted in advance, if there is plenty of everything: what the allowance has of
-- requests, tokens and requests at once, and ms until it is over; nothing, if there is none. `left`: tokens, of all
-- limits on them. Asked again (not `fresh`), it is what was allowed the first time.
local function allow(k, a, left, fresh)
  local name, wanted, slots = a[15], a[16], a[17]
  local n, at, tokens = k.numbers, k.numbers.at, a[5]
  local entry = k.allowed.permits[name]
  if entry then
    local _, reserved, since, has, _, requests = allowance(entry)
    return {requests, reserved, has, (since + 1) * 1000 - now_ms}
  end
  if not fresh then return {} end
  if a[7] > 0 then wanted = math.min(wanted, math.floor((a[7] - n.r) / SHARE)) end
  if tokens > 0 then wanted = math.min(wanted, math.floor(left / SHARE / tokens)) end
  local places = a[6] > 0 and math.floor((a[6] - at_once(k)) / SHARE) or slots
  if wanted < LEAST or (a[6] > 0 and places < LEAST) or at ~= second then return {} end
  slots = math.min(slots, places)
  tokens = wanted * tokens
  charge(k, at, wanted, tokens)
  put(k, k.allowed, name, tokens, string.format('%s %d %d %d 0 %d', a[3], tokens, at, slots, wanted), slots)
  return {wanted, tokens, slots, (second + 1) * 1000 - now_ms}
end

-- key permit web defer_s tokens concurrency rpm tpm per_day per_month day month day_ledger month_ledger, and where more of
-- the kind are going to come: allowance, how many in this second, how many at once
-- `web` is empty for work that nobody waits for: it has no part in `concurrency`. Limits of 0 are none.
-- Returns verdict, requests left, tokens left, and ms: until these are whole again, until a retry makes sense; 1 if
-- more than half is used of what a settlement gives back; and what was allowed, as `allow` says
function verbs.admit(a)
  local key, permit, web, defer_s, tokens = a[1], a[2], a[3], a[4], a[5]
  local concurrency, rpm, tpm, per_day, per_month = a[6], a[7], a[8], a[9], a[10]
  local k = known(key)
  local hash, n, at = web ~= '' and k.open or k.deferred, k.numbers, k.numbers.at
  local verdict, retry, tight, tighter, left, less = 'ok', 0, false, false, math.huge, math.huge
  local fresh = not hash.permits[permit]  -- else asked again after an answer was lost
  k.lasting = math.max(k.lasting or WEEK, 2 * defer_s)

  if fresh then
    if rpm > 0 and n.r + 1 > rpm then
      verdict, retry = 'requests', until_free(k, 'r', n.r + 1 - rpm)
    elseif tpm > 0 and n.t + tokens > tpm then
      verdict, retry = 'tokens', until_free(k, 't', n.t + tokens - tpm)
    end
    if verdict == 'ok' and concurrency > 0 and web ~= '' and at_once(k) >= concurrency then
      purge(k)
      if at_once(k) >= concurrency then verdict, retry = 'concurrency', 1000 end
    end
    if verdict == 'ok' and per_day > 0 then
      verdict, retry, tight, left = budget(k, tokens, 'day', per_day, a[11], a[13])
    end
    if verdict == 'ok' and per_month > 0 then
      verdict, retry, tighter, less = budget(k, tokens, 'month', per_month, a[12], a[14])
    end
    if verdict == 'ok' then
      charge(k, at, 1, tokens)
      local since = web ~= '' and web or text(second + defer_s)
      put(k, hash, permit, tokens, string.format('%s %d %d', since, tokens, at))
    end
  end

  tight = tight or tighter or verdict ~= 'ok' or (tpm > 0 and 2 * n.t > tpm) or (concurrency > 0 and 2 * at_once(k) > concurrency)
  local allowed, requests_left, tokens_left = {}, rpm - n.r, tpm - n.t
  if a[15] and not tight then
    allowed = allow(k, a, math.min(left, less, tpm > 0 and tpm - n.t or math.huge), fresh)
  end
  local reset_requests, reset_tokens = reset(n.r, n.lr), reset(n.t, n.lt)
  return {verdict, requests_left, tokens_left, reset_requests, reset_tokens, retry, tight and 1 or 0, unpack(allowed)}
end

-- key permit waits tokens served day month: the work is over and took so many tokens. Not served: the request
-- is given back, too. Returns whether the permit was open; a second time nothing changes.
function verbs.settle(a)
  local k, permit, tokens, served = known(a[1]), a[2], a[4], a[5] == 1
  local hash = a[3] == 1 and k.open or k.deferred
  local entry = hash.permits[permit]
  if not entry then return 0 end
  local reserved, since = string.match(entry, ' (%d+) (%d+)$')
  reserved, since = tonumber(reserved), tonumber(since)
  take(k, hash, permit, reserved)
  correct(k, since, served and 0 or -1, tokens - reserved)
  if tokens > 0 then
    for i = 6, 7 do k.spent[a[i]] = (k.spent[a[i]] or 0) + tokens end
  end
  return 1
end

-- key allowance account slots reserved requests tokens, and of each period: its name and tokens spent. What a web process
-- has to say of an allowance, in its own numbering: requests at once and tokens that it keeps, what it gives back of
-- requests (-1: all, nothing was used) and tokens (or took more), and what was spent. Returns whether it was news.
function verbs.account(a)
  local k, name, number, slots, keeps, requests, tokens = known(a[1]), a[2], a[3], a[4], a[5], a[6], a[7]
  local entry = k.allowed.permits[name]
  if not entry then return 0 end
  local web, reserved, since, had, heard, began = allowance(entry)
  if number <= heard then return 0 end
  if requests < 0 then requests, tokens = began, reserved end
  take(k, k.allowed, name, reserved, had)
  if slots > 0 then
    put(k, k.allowed, name, keeps, string.format('%s %d %d %d %d %d', web, keeps, since, slots, number, began), slots)
  end
  correct(k, since, -requests, -tokens)
  for i = 8, #a, 2 do k.spent[a[i]] = (k.spent[a[i]] or 0) + a[i + 1] end
  return 1
end
