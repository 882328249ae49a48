"""The target directory: shards, index, configs, tokenizer files, report; all or nothing."""
