"""The client library: an app's data on the device, offline first. Apps import `foldlog` itself."""
