-- Reads a part of a stream that somebody else fills, backwards. Writes nothing.
--
-- KEYS: 1 the stream
-- ARGV: 1 where to begin: an id, or '(' and an id for the one before it  2 most entries  3 most bytes of data
--       4 the field with the message's id  5 the field with its data
-- Gives: the entries, the newest first: id, message id or false, data or false.
local limit, bytes = tonumber(ARGV[2]), tonumber(ARGV[3])
local entries, from = {}, ARGV[1]
while true do
  local part = redis.call('XREVRANGE', KEYS[1], from, '-', 'COUNT', 50)
  for _, entry in ipairs(part) do
    local fields, id, data = entry[2], false, false
    for i = 1, #fields, 2 do
      if fields[i] == ARGV[4] then id = fields[i + 1] end
      if fields[i] == ARGV[5] then data = fields[i + 1] end
    end
    bytes = bytes - (data and #data or 0)
    if #entries > 0 and (#entries >= limit or bytes < 0) then return entries end
    entries[#entries + 1] = {entry[1], id, data}
  end
  if #part < 50 then return entries end
  from = '(' .. part[#part][1]
end
