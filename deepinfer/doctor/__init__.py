"""What works on this machine and what does not: a finding for each thing that DeepInfer needs."""
