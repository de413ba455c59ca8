"""Jobs that are interrupted at random moments, brought back as a queue would, and held against an undisturbed run."""
