"""The client library. It stores an app's records in a file on the device, so that the app works
offline, and syncs them with the service. Apps import the public names from `foldlog`.
"""
