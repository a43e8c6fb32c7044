"""What we use of ml_collections, which has no types: an option may be anything."""

from ml_collections.config_dict import ConfigDict as ConfigDict
