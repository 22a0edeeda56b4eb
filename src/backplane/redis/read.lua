-- Reads a part of a channel's log. Writes nothing but the life of what is stored, where it has none yet.
--
-- KEYS: 1 the stream  2 the log's hash  3 the life of what is stored
-- ARGV: 1 the number to read behind  2 the id of the entry with that number, or ''  3 most entries  4 most bytes of payload
--       5 a life for a store without one  6 what epochs have of the list of shards, or '' where there is none
-- Gives: the hash's epoch, n and id, or ARGV 6 and the life, false, false where there is no log; the first retained entry's n and
-- epoch, or false; whether the entry of ARGV 1 and 2 is there, by its epoch; the entries.
local log = redis.call('HMGET', KEYS[2], 'e', 'n', 'i')
-- What was written before the channel was elsewhere is no part of its log.
if not (log[1] and log[2] and log[3]) or (string.match(log[1], '%-%d+%-') or '') ~= ARGV[6] then
  local life = redis.call('GET', KEYS[3])
  -- Where there is no room for it none is given: nothing can be published there either.
  if not life and redis.pcall('SET', KEYS[3], ARGV[5]).ok then life = ARGV[5] end
  return {life and ARGV[6] .. life, false, false, false, false, false, {}}
end
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if not first then
  return {log[1], log[2], log[3], false, false, false, {}}
end
local after, limit, bytes = tonumber(ARGV[1]), tonumber(ARGV[3]), tonumber(ARGV[4])
local at, from = false, '-'
if ARGV[2] ~= '' then
  local entry = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])[1]
  if entry and tonumber(entry[2][2]) == after then
    at, from = entry[2][4], '(' .. ARGV[2]
  end
end
-- Without the entry to start from, entries in front of the number are passed over: at most as many as are retained.
local entries = {}
while true do
  local part = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', 50)
  for _, entry in ipairs(part) do
    local fields = entry[2]
    if tonumber(fields[2]) > after then
      bytes = bytes - #fields[10]
      if #entries > 0 and (#entries >= limit or bytes < 0) then part = {} break end
      entries[#entries + 1] = {entry[1], fields[2], fields[4], fields[6], fields[10]}
    end
  end
  if #part < 50 then break end
  from = '(' .. part[#part][1]
end
return {log[1], log[2], log[3], first[2][2], first[2][4], at, entries}
