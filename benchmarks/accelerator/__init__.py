"""What does an accelerator reach? One command of at most eight minutes, for one NVIDIA H100 or H200.

    python -m benchmarks.accelerator [--minutes 8] [--out DIR] [--parts NAME,...] [--small]

Each part runs in a process of its own and writes its own JSON, so that a run which is cut off keeps
what it measured and a part which fails costs no other. The most valuable part comes first:

1. `calibration`: seconds of decoding steps and verify passes by width, batch and context in
   bfloat16, turned into a hardware file by the code of `sdsl calibrate`;
2. `training`: model FLOPs utilisation of the training step at 100M parameters and 1,024 tokens;
3. `decoding`: speculative and plain decoding beside `generate` of Hugging Face transformers;
4. `attention`: the fused attention of the device against float32, and its speed;
5. `losslessness`: the joint χ² test of the decoder's output with bfloat16 models.

Compilation counts in the time, so the parts use few programs. `parts.PARTS` says what each part is
expected to take; a part that would not fit any more is left out and named. `--small` tries every
part with tiny models, on a CPU too.
"""
