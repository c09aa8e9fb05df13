"""What tests share, each helper once: real peers, real processes, real programs."""
