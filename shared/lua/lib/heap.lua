-- heap: a list whose first item has the least tag. A sorted list is one.

-- The first item has got a later tag.
local function sink(items)
  local i, last = 1, #items
  while i <= last do
    local least, left = i, 2 * i
    if left <= last and items[left].tag < items[least].tag then least = left end
    if left < last and items[left + 1].tag < items[least].tag then least = left + 1 end
    if least == i then return end
    items[i], items[least] = items[least], items[i]
    i = least
  end
end

local function drop_first(items)
  items[1] = items[#items]
  items[#items] = nil
  sink(items)
end
