-- Which labels a window was measured by, so that a corrected value is seen where the number of labels is the same.

alter table performance add column labels text;  -- null: no label, or measured before this column was
