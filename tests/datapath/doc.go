// Package datapath tests the shipped object under BPF_PROG_TEST_RUN: one frame in, a
// verdict and a frame out, no traffic. Every frame that comes out has its checksums
// computed again, by code that knows nothing of the programs'.
package datapath
