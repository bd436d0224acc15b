"""Loss functions: pure functions of tensors that return a sum and a count. They import nothing of minift."""
