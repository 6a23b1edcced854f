"""From a torch network to an ONNX graph: conversion, checks, rewrites."""
