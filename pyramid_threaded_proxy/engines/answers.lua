-- What becomes of an upstream's fields on their way to the client, in words of Lua alone: each engine that runs Lua
-- hands over its own fields. `site` stands above this.

-- What stands behind a path that is below another one; nil where it is not.
local function below(path, mount)
    if path:sub(1, #mount) ~= mount then return nil end
    local rest = path:sub(#mount + 1)
    if rest == "" or rest:match("^[/?#]") then return rest end
end

local function ruled(text, rules)
    for _, rule in ipairs(rules) do
        if text:sub(1, #rule[1]) == rule[1] then return rule[2] .. text:sub(#rule[1] + 1) end
    end
end

local function public_path(path, route)
    if below(path, route.mount) and route.mount ~= "" then return path end
    for _, upstream in ipairs(route.upstreams) do
        local rest = below(path, upstream.base)
        if rest then return route.mount .. rest end
    end
end

-- The upstream's own URLs and paths, as the client sees them.
local function location(value, route, public)
    local by_rule = ruled(value, route.locations)
    if by_rule then return by_rule end
    if value:sub(1, 1) == "/" and value:sub(2, 2) ~= "/" then return public_path(value, route) or value end
    local scheme, authority, path = value:match("^(%a[%w+.-]*)://([^/?#]*)(.*)$")
    if not scheme then return value end
    for _, upstream in ipairs(route.upstreams) do
        if scheme:lower() == upstream.scheme and authority:lower() == upstream.authority then
            local mapped = public_path(path == "" and "/" or path, route)
            return mapped and public .. mapped or value
        end
    end
    if authority:lower() == public:match("//(.*)$"):lower() then
        local mapped = public_path(path == "" and "/" or path, route)
        return mapped and public .. mapped or value
    end
    return value
end

-- A cookie of the upstream's, confined to the mount; nil for one of the application's own names.
local function cookie(value, route)
    local name = value:match("^%s*([^=;]*)="):match("^(.-)%s*$")
    if name == "" or site.own_cookies[name] then return nil end
    if not route.cookies then return value end
    if name:lower():sub(1, 7) == "__host-" then return nil end
    local parts, path = {}, ""
    for part in value:gmatch("[^;]+") do
        local attribute, given = part:match("^%s*([^=]-)%s*=%s*(.-)%s*$")
        attribute = (attribute or part):lower():match("^%s*(.-)%s*$")
        if #parts > 0 and attribute == "path" then
            path = given or ""
        elseif #parts == 0 or (attribute ~= "domain" and attribute ~= "") then
            table.insert(parts, part)
        end
    end
    local mount = route.mount == "" and "/" or route.mount
    local confined = ruled(path, route.cookies)
    if not confined and path:sub(1, 1) == "/" and path ~= "/" then confined = public_path(path, route) end
    if not confined or confined == "" then confined = mount end
    return table.concat(parts, ";") .. "; Path=" .. confined
end

-- Kept out of shared caches, as the relay does it.
local function private(said)
    if said:find('"') then return "private" end
    local kept = { "private" }
    for directive in said:gmatch("[^,]+") do
        directive = directive:match("^%s*(.-)%s*$")
        local name = directive:lower():match("^[^=%s]*")
        if directive:lower() == "private" or name == "no-store" then return said end
        if name ~= "" and name ~= "public" and name ~= "private" and name ~= "s-maxage" then
            table.insert(kept, directive)
        end
    end
    return table.concat(kept, ", ")
end
