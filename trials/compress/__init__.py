"""What is done to the weights of a student: sparsity, quantization and adapters."""
