"""Triton kernels for fine-tuning, one file each: the maths, a plain torch reference, the kernel, and what bounds it.

    codes.py        the 16 values of NF4 and FP4, the 256 of the dynamic maps
    registry.py     what a kernel says of itself: its cases drive tests, compile gate, benchmark and the teaching view
    runtime.py      may a kernel be launched here, and what is said when it may not

Needs torch; triton where a kernel runs. Knows nothing of minift, which calls it for tensors on a GPU.
Everything runs without one too: TRITON_INTERPRET=1, set before the import, makes Triton's interpreter execute the kernels on the CPU."""
