-- Breakers of places and strikes of requests. Part of the board's script: `board.lua` goes on.
--
-- Keys
--   gt:breakers                  hash: "<node>/<model>" -> "<opening> <until, ms> <faults> <probe or ->"; open ones only
--   gt:faults:<node>/<model>     list of the last faults (ms), while no breaker is open
--   gt:strikes                   hash: fingerprint of a request -> "<engines it brought down> <until, ms>"
--   gt:nodes:slots               hash, written by the registry: "<node>/<model>" -> requests at once
--
-- A breaker (Nygard: Release It!, 2007) is exact since every verdict on an attempt comes with the release of its
-- slot, which happens once. Open, its place is passed over; when its time is over, one attempt at a time may
-- probe it. But it never shuts out the last: with no other live place that a job may use, it is used. Work
-- placed while a breaker is open carries the number of that opening, so that what was under way before can
-- neither close it nor open it again.

local FAULTS, STRIKES = 'gt:faults:', 'gt:strikes'
local REMEMBER_MS = 600000  -- how long a breaker that nobody probes, or a drain rate, is worth anything
local STRIKES_KEPT = 1000

local function breaker_of(place)
  local packed = redis.call('HGET', BREAKERS, place)
  if not packed then return nil end
  local opening, ends, faults, probe = string.match(packed, '^(%d+) (%d+) (%d+) (%S+)$')
  return {opening = tonumber(opening), ends = tonumber(ends), faults = tonumber(faults), probe = probe}
end

local function keep_breaker(place, b)
  redis.call('HSET', BREAKERS, place, string.format('%d %.0f %d %s', b.opening, b.ends, b.faults, b.probe))
end

-- How a place may take work: 'free', 'probe' (one may try it), or 'shut'; and its breaker if it has one.
local function gate(place)
  local b = breaker_of(place)
  if not b then return 'free' end
  local probed = b.probe ~= '-' and redis.call('HEXISTS', SLOTS .. place, b.probe) == 1
  return (b.ends <= now_ms() and not probed) and 'probe' or 'shut', b
end

-- Live nodes that serve a model and have no breaker open. Reads all places: only for who meets a shut one.
local function sound_nodes(model)
  local found, places = {}, redis.call('HGETALL', CAPACITY)
  for i = 1, #places, 2 do
    local node, name = string.match(places[i], '^([^/]+)/(.+)$')
    if name == model and tonumber(places[i + 1]) > 0 and redis.call('HEXISTS', BREAKERS, places[i]) == 0
       and alive(node) then
      found[#found + 1] = node
    end
  end
  return found
end

local function any_untried(nodes, tried, only)
  for _, node in ipairs(nodes) do
    local name = ' ' .. node .. ' '
    if not string.find(tried, name, 1, true) and (only == '' or string.find(only, name, 1, true)) then
      return true
    end
  end
  return false
end

-- What the end of an attempt says of its place: 'ok', 'fault', or 'down' for what ends all work there at once,
-- and so counts once for all that was under way.
local function judge(place, entry, verdict, most, window_ms, open_ms, longest_ms)
  local now, b = now_ms(), breaker_of(place)
  local placed_at, opening = string.match(entry, '^%S+ %S* %d+ (%d+) ?(%d*)$')
  local of_this = b and tonumber(opening) == b.opening
  if verdict == 'ok' then
    if of_this then redis.call('HDEL', BREAKERS, place) end
  elseif b then
    b.faults = b.faults + 1
    if of_this and b.ends <= now then
      b.ends = now + math.min(open_ms * 2 ^ b.opening, longest_ms)
      b.opening, b.probe = b.opening + 1, '-'
    end
    keep_breaker(place, b)
  else
    local faults = FAULTS .. place
    local last = redis.call('LINDEX', faults, -1)
    if verdict == 'down' and last and tonumber(placed_at) < tonumber(last) then return end
    local n = redis.call('RPUSH', faults, string.format('%.0f', now))
    redis.call('PEXPIRE', faults, window_ms)
    if n > most then
      if tonumber(redis.call('LINDEX', faults, -most - 1)) > now - window_ms then
        keep_breaker(place, {opening = 1, ends = now + open_ms, faults = most + 1, probe = '-'})
        redis.call('DEL', faults)
      else
        redis.call('LTRIM', faults, -most, -1)
      end
    end
  end
end

-- A request brought an engine down. Returns how many it has by now.
local function strike(fingerprint, keep_ms)
  local now, known = now_ms(), redis.call('HGET', STRIKES, fingerprint)
  local count, ends = string.match(known or '0 0', '^(%d+) (%d+)$')
  if tonumber(ends) <= now then count = 0 end
  if not known and redis.call('HLEN', STRIKES) >= STRIKES_KEPT then return 0 end
  redis.call('HSET', STRIKES, fingerprint, string.format('%d %.0f', count + 1, now + keep_ms))
  redis.call('PEXPIRE', STRIKES, keep_ms)
  return count + 1
end
