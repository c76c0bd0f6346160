"""What to try next and what it means: arms, ledger, fronts, verdicts, report. No torch, no Ray."""
