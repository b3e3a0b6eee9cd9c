// Package metricstest is a strict reader of Prometheus' text format 0.0.4, for the
// tests of those who write it. What a lenient scraper forgives is an error here:
// a family in two pieces, a series twice, a histogram that falls.
package metricstest
