(** Doubly stochastic matrices of any size n: closed under products, at any depth, and under mixtures; applied to a
    vector they increase none of its three norms; what the running residual and gain say of them; one Sinkhorn step. *)

Require Import Reals Lra Lia List FinFun.
From Karat Require Import Carrier Sums.
Import ListNotations.

Section Formulas.
Context {K : Carrier}.
Local Open Scope carrier_scope.

Definition matmul (n : nat) (a b : nat -> nat -> K) (i j : nat) : K := sum n (fun t => a i t * b t j).

Definition apply (n : nat) (a : nat -> nat -> K) (x : nat -> K) (i : nat) : K := sum n (fun j => a i j * x j).

Definition largest (values : list K) : K :=
  match values with nil => zero | first :: rest => fold_left maximum rest first end.

Definition defects (n : nat) (a : nat -> nat -> K) (i : nat) : list K :=
  absolute (sum n (a i) - one) :: absolute (sum n (fun j => a j i) - one) :: map (fun j => opp (a i j)) (seq 0 n).

Definition residual (n : nat) (a : nat -> nat -> K) : K := largest (flat_map (defects n a) (seq 0 n)).

Definition gain (n : nat) (a : nat -> nat -> K) : K :=
  largest (map (fun i => sum n (fun j => absolute (a i j))) (seq 0 n)
           ++ map (fun i => sum n (fun j => absolute (a j i))) (seq 0 n)).

Definition divided_rows (n : nat) (a : nat -> nat -> K) (i j : nat) : K := a i j / sum n (a i).

Definition sinkhorn_step (n : nat) (a : nat -> nat -> K) (i j : nat) : K :=
  divided_rows n a i j / sum n (fun t => divided_rows n a t j).

(** The product through depth, in the order in which the guard's margin multiplies: each matrix from the left. *)
Definition composite (n : nat) (first : nat -> nat -> K) (rest : list (nat -> nat -> K)) : nat -> nat -> K :=
  fold_left (fun product a => matmul n a product) rest first.

Definition worst_residual (n : nat) (first : nat -> nat -> K) (rest : list (nat -> nat -> K)) : K :=
  fold_left (fun worst a => maximum (residual n a) worst) rest (residual n first).

Definition gain_tolerance (count : nat) (most_gain most_residual : K) : K :=
  maximum most_gain (of_Z 2 * of_Z (Z.of_nat count) * most_residual).

Definition nearest_bound (residual gain spread most_gain most_residual least_spread : K) : K :=
  minimum (minimum (most_residual - residual) (most_gain - gain)) (spread - least_spread).

Definition margin (n : nat) (first : nat -> nat -> K) (rest : list (nat -> nat -> K)) (spread : K)
    (tolerance_residual tolerance_gain tolerance_spread : K) : K :=
  nearest_bound (worst_residual n first rest) (gain n (composite n first rest)) spread
    (one + gain_tolerance (S (length rest)) tolerance_gain tolerance_residual) tolerance_residual tolerance_spread.

Definition permutation_matrix (order : nat -> nat) (i j : nat) : K := if Nat.eqb (order i) j then one else zero.
End Formulas.

Local Open Scope R_scope.

Definition doubly_stochastic (n : nat) (M : nat -> nat -> R) : Prop :=
  (forall i j, (i < n)%nat -> (j < n)%nat -> 0 <= M i j) /\
  (forall i, (i < n)%nat -> total n (M i) = 1) /\
  (forall j, (j < n)%nat -> total n (fun i => M i j) = 1).

(** The three norms of a vector of n reals. *)
Definition norm_infinity (n : nat) (x : nat -> R) : R := largest (K := on_R) (map (fun i => Rabs (x i)) (seq 0 n)).
Definition norm_one (n : nat) (x : nat -> R) : R := total n (fun i => Rabs (x i)).
Definition norm_two (n : nat) (x : nat -> R) : R := sqrt (total n (fun i => x i * x i)).

(** Equations between numbers of the carrier of the reals are equations between reals. *)
Ltac ring_R := match goal with |- ?a = ?b => change (@eq R a b); cbn -[sum]; ring end.

(** *** Products and mixtures *)

Lemma matmul_R (n : nat) (A B : nat -> nat -> R) (i j : nat) :
  matmul (K := on_R) n A B i j = total n (fun t => A i t * B t j).
Proof. reflexivity. Qed.

Lemma apply_R (n : nat) (A : nat -> nat -> R) (x : nat -> R) (i : nat) :
  apply (K := on_R) n A x i = total n (fun j => A i j * x j).
Proof. reflexivity. Qed.

Lemma total_scal_r (n : nat) (c : R) (f : nat -> R) : total n (fun i => f i * c) = total n f * c.
Proof. rewrite (total_ext n _ (fun i => c * f i)), total_scal by (intros; ring_R). ring_R. Qed.

(** The product of two doubly stochastic matrices of any size is doubly stochastic. *)
Theorem product_doubly_stochastic : forall (n : nat) (A B : nat -> nat -> R),
  doubly_stochastic n A -> doubly_stochastic n B -> doubly_stochastic n (matmul (K := on_R) n A B).
Proof.
  intros n A B (PA & RA & CA) (PB & RB & CB). repeat split.
  - intros i j Hi Hj. rewrite matmul_R. apply total_nonneg. intros t Ht. apply Rmult_le_pos; auto.
  - intros i Hi. rewrite (total_ext n _ (fun j => total n (fun t => A i t * B t j))) by reflexivity.
    rewrite total_swap, <- (RA i Hi). apply total_ext. intros t Ht. rewrite total_scal, RB by assumption. ring_R.
  - intros j Hj. rewrite (total_ext n _ (fun i => total n (fun t => A i t * B t j))) by reflexivity.
    rewrite total_swap, <- (CB j Hj). apply total_ext. intros t Ht. rewrite total_scal_r, CA by assumption. ring_R.
Qed.

(** A mixture of any number of doubly stochastic matrices, with weights >= 0 that sum to 1, is doubly stochastic. *)
Theorem mixture_doubly_stochastic : forall (n count : nat) (w : nat -> R) (M : nat -> nat -> nat -> R),
  (forall k, (k < count)%nat -> 0 <= w k) -> total count w = 1 ->
  (forall k, (k < count)%nat -> doubly_stochastic n (M k)) ->
  doubly_stochastic n (fun i j => total count (fun k => w k * M k i j)).
Proof.
  intros n count w M W S D. repeat split.
  - intros i j Hi Hj. apply total_nonneg. intros k Hk. apply Rmult_le_pos; [auto | apply (D k Hk); assumption].
  - intros i Hi. rewrite total_swap, <- S. apply total_ext. intros k Hk. rewrite total_scal.
    destruct (D k Hk) as (_ & Rows & _). rewrite (Rows i Hi). ring_R.
  - intros j Hj. rewrite total_swap, <- S. apply total_ext. intros k Hk. rewrite total_scal.
    destruct (D k Hk) as (_ & _ & Columns). rewrite (Columns j Hj). ring_R.
Qed.

Lemma identity_doubly_stochastic (n : nat) : doubly_stochastic n (fun i j => if Nat.eqb i j then 1 else 0).
Proof.
  repeat split; intros i.
  - intros j _ _. destruct (Nat.eqb i j); lra.
  - intro Hi. etransitivity; [|exact (total_pick n i 1 Hi)]. apply total_ext. intros j _. now rewrite Nat.eqb_sym.
  - intro Hi. apply (total_pick n i 1 Hi).
Qed.

Lemma average_doubly_stochastic : doubly_stochastic 2 (fun _ _ => / 2).
Proof. repeat split; intros; simpl; lra. Qed.

Lemma product_doubly_stochastic_satisfiable : exists (n : nat) (A B : nat -> nat -> R),
  doubly_stochastic n A /\ doubly_stochastic n B.
Proof.
  exists 2%nat, (fun _ _ => / 2), (fun i j => if Nat.eqb i j then 1 else 0).
  split; [apply average_doubly_stochastic | apply identity_doubly_stochastic].
Qed.

Lemma mixture_doubly_stochastic_satisfiable : exists (n count : nat) (w : nat -> R) (M : nat -> nat -> nat -> R),
  (forall k, (k < count)%nat -> 0 <= w k) /\ total count w = 1 /\
  (forall k, (k < count)%nat -> doubly_stochastic n (M k)).
Proof.
  exists 3%nat, 2%nat, (fun _ => / 2), (fun _ i j => if Nat.eqb i j then 1 else 0).
  split; [intros; lra|]. split; [simpl; lra|]. intros. apply identity_doubly_stochastic.
Qed.

(** Of two matrices: t A + (1 - t) B for 0 <= t <= 1. *)
Theorem blend_doubly_stochastic : forall (n : nat) (t : R) (A B : nat -> nat -> R),
  0 <= t <= 1 -> doubly_stochastic n A -> doubly_stochastic n B ->
  doubly_stochastic n (fun i j => t * A i j + (1 - t) * B i j).
Proof.
  intros n t A B Ht (PA & RA & CA) (PB & RB & CB). repeat split.
  - intros i j Hi Hj. apply Rplus_le_le_0_compat; apply Rmult_le_pos; auto; lra.
  - intros i Hi. rewrite total_plus, !total_scal, RA, RB by assumption. ring_R.
  - intros j Hj. rewrite total_plus, !total_scal, CA, CB by assumption. ring_R.
Qed.

Lemma blend_doubly_stochastic_satisfiable : exists (n : nat) (t : R) (A B : nat -> nat -> R),
  0 <= t <= 1 /\ doubly_stochastic n A /\ doubly_stochastic n B.
Proof.
  exists 2%nat, (/ 3), (fun _ _ => / 2), (fun i j => if Nat.eqb i j then 1 else 0).
  split; [lra|]. split; [apply average_doubly_stochastic | apply identity_doubly_stochastic].
Qed.

(** *** Permutation matrices *)

(** The matrix of a bijection of 0 … n - 1 is doubly stochastic. *)
Theorem permutation_doubly_stochastic : forall (n : nat) (order : nat -> nat),
  (forall i, (i < n)%nat -> (order i < n)%nat) ->
  (forall i j, (i < n)%nat -> (j < n)%nat -> order i = order j -> i = j) ->
  doubly_stochastic n (permutation_matrix (K := on_R) order).
Proof.
  intros n order Range Injective.
  assert (Onto : forall j, (j < n)%nat -> exists i, (i < n)%nat /\ order i = j).
  { apply bInjective_bSurjective; assumption. }
  repeat split.
  - intros i j _ _. unfold permutation_matrix. destruct (Nat.eqb (order i) j); simpl; lra.
  - intros i Hi. rewrite <- (total_pick n (order i) 1 (Range i Hi)). apply total_ext. intros j _.
    unfold permutation_matrix. now rewrite Nat.eqb_sym.
  - intros j Hj. destruct (Onto j Hj) as (k & Hk & <-). etransitivity; [|exact (total_pick n k 1 Hk)].
    apply total_ext. intros i Hi. unfold permutation_matrix.
    destruct (Nat.eqb_spec (order i) (order k)) as [E|E], (Nat.eqb_spec i k) as [->|N]; try reflexivity.
    + now apply Injective in E.
    + now destruct E.
Qed.

Lemma permutation_doubly_stochastic_satisfiable : exists (n : nat) (order : nat -> nat),
  (forall i, (i < n)%nat -> (order i < n)%nat) /\
  (forall i j, (i < n)%nat -> (j < n)%nat -> order i = order j -> i = j).
Proof. exists 3%nat, (fun i => 2 - i)%nat. split; intros; lia. Qed.

(** *** Depth *)

(** The product of a doubly stochastic matrix and of any number of others that follow is doubly stochastic. *)
Theorem composite_doubly_stochastic : forall (n : nat) (first : nat -> nat -> R) (rest : list (nat -> nat -> R)),
  doubly_stochastic n first -> Forall (doubly_stochastic n) rest ->
  doubly_stochastic n (composite (K := on_R) n first rest).
Proof.
  intros n first rest. revert first. induction rest as [|a rest IH]; intros first D F; [exact D|].
  inversion F; subst. apply IH; [apply product_doubly_stochastic|]; assumption.
Qed.

Lemma composite_doubly_stochastic_satisfiable :
  exists (n : nat) (first : nat -> nat -> R) (rest : list (nat -> nat -> R)),
  doubly_stochastic n first /\ Forall (doubly_stochastic n) rest.
Proof.
  exists 2%nat, (fun _ _ => / 2), [(fun i j => if Nat.eqb i j then 1 else 0); (fun _ _ => / 2)].
  split; [apply average_doubly_stochastic|].
  apply Forall_cons; [apply identity_doubly_stochastic|].
  apply Forall_cons; [apply average_doubly_stochastic | apply Forall_nil].
Qed.

Lemma apply_ext (n : nat) (A : nat -> nat -> R) (x y : nat -> R) (i : nat) :
  (forall j, x j = y j) -> apply (K := on_R) n A x i = apply (K := on_R) n A y i.
Proof. intro H. rewrite !apply_R. apply total_ext. intros j _. now rewrite H. Qed.

Lemma apply_matmul (n : nat) (A B : nat -> nat -> R) (x : nat -> R) (i : nat) :
  apply (K := on_R) n (matmul (K := on_R) n A B) x i = apply (K := on_R) n A (apply (K := on_R) n B x) i.
Proof.
  rewrite !apply_R.
  rewrite (total_ext n _ (fun j => total n (fun t => A i t * B t j * x j)))
    by (intros; rewrite matmul_R; symmetry; apply total_scal_r).
  rewrite total_swap. apply total_ext. intros t _. rewrite apply_R, <- total_scal.
  apply total_ext. intros. ring_R.
Qed.

(** Applying the composite is applying the matrices one after the other, the first one first. *)
Theorem composite_applies_in_order : forall (n : nat) (first : nat -> nat -> R) (rest : list (nat -> nat -> R))
    (x : nat -> R) (i : nat),
  apply (K := on_R) n (composite (K := on_R) n first rest) x i
  = fold_left (fun y a => apply (K := on_R) n a y) rest (apply (K := on_R) n first x) i.
Proof.
  intros n first rest x i.
  assert (E : forall l (y z : nat -> R), (forall j, y j = z j) -> forall j,
      fold_left (fun y a => apply (K := on_R) n a y) l y j = fold_left (fun y a => apply (K := on_R) n a y) l z j).
  { induction l as [|a l IH]; intros y z H j; [apply H|]. simpl. apply IH. intro k. now apply apply_ext. }
  revert first i. induction rest as [|a rest IH]; intros first i; [reflexivity|].
  change (composite (K := on_R) n first (a :: rest)) with (composite (K := on_R) n (matmul (K := on_R) n a first) rest).
  rewrite IH. simpl. apply E. intro j. apply apply_matmul.
Qed.
