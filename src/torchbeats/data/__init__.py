"""What a user names: lists, folders and labels, as sounds to work on."""
