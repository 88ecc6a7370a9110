"""Model families: what turns a name, a folder or a checkpoint into a Model. One file a family.

A family has a name, such as ``adm``. What lies in a folder of diffusers, or under a name on its hub, is told by the
class of its network instead: ``diffusers/`` has one file a kind of network.
"""
