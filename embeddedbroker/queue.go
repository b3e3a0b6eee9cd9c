package embeddedbroker

import "sync"

// pieceLen is how many elements of a queue lie together.
const pieceLen = 32

type piece[T any] [pieceLen]T

// queue is a FIFO in pieces: it grows without copying and an empty one owns
// next to nothing, so that a client which had a burst costs no more than one
// that had none. With a pool, pieces are shared with others of the same kind.
type queue[T any] struct {
	pool   *sync.Pool // of *piece[T]; nil: pieces are made and dropped
	pieces []*piece[T]
	head   int // of the front in the first piece
	n      int
}

// pieces that sessions share.
var (
	itemPieces   = sync.Pool{New: func() any { return new(piece[item]) }}
	flightPieces = sync.Pool{New: func() any { return new(piece[flight]) }}
)

func (q *queue[T]) len() int { return q.n }

// at is the i-th element from the front; the pointer is valid until it is popped.
func (q *queue[T]) at(i int) *T {
	i += q.head
	return &q.pieces[i/pieceLen][i%pieceLen]
}

func (q *queue[T]) push(v T) {
	if q.head+q.n == len(q.pieces)*pieceLen {
		var p *piece[T]
		if q.pool != nil {
			p = q.pool.Get().(*piece[T])
		} else {
			p = new(piece[T])
		}
		q.pieces = append(q.pieces, p)
	}
	q.n++
	*q.at(q.n - 1) = v
}

func (q *queue[T]) pop() T {
	var zero T
	p := &q.pieces[0][q.head]
	v := *p
	*p = zero
	q.n--
	if q.head++; q.head == pieceLen || q.n == 0 {
		q.shift()
	}
	return v
}

// shift gives the first piece back, which is empty.
func (q *queue[T]) shift() {
	q.head = 0
	if q.pool != nil {
		q.pool.Put(q.pieces[0])
	}
	k := copy(q.pieces, q.pieces[1:])
	q.pieces[k] = nil
	if q.pieces = q.pieces[:k]; k == 0 && cap(q.pieces) > 8 {
		q.pieces = nil
	}
}

// insert puts v before the i-th element.
func (q *queue[T]) insert(i int, v T) {
	q.push(v)
	for j := q.n - 1; j > i; j-- {
		*q.at(j) = *q.at(j - 1)
	}
	*q.at(i) = v
}

func (q *queue[T]) clear() {
	for q.n > 0 {
		q.pop()
	}
}
