"""The sub-commands of `keepwarm`, one module each, and what they share."""
