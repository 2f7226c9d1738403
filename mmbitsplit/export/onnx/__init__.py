"""ONNX files in int8 and int4, the runtimes that execute them, and what they really execute.

Needs the packages of the extra ``onnx``; nothing else in the library imports this folder before it
is asked for.
"""
