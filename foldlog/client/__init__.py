"""The client library: an app's data on the device, offline first. Its door is `foldlog` itself."""
