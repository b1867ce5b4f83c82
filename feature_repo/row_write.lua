-- Writes rows, each unless a newer one is there. KEYS and ARGV: see write_rows in row_order.lua.
-- Returns how many rows were written.
return write_rows(1, 1)
