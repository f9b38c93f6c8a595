"""What all packages share: sampling parameters, requests, batches, outputs, options, errors. Introduced in chapter 1."""
